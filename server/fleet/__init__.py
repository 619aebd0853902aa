"""What makes a server a replica: it tells how it stands, and takes what gateways bring."""
