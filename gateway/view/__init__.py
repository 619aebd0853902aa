"""What a gateway knows of its fleet: reports, health, its own requests under way."""
