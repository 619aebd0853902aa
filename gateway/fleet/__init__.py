"""What a gateway and a replica have in common: names, records, the way to Redis."""
