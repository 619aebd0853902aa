"""Many replicas behind one door; knows a replica only over HTTP and Redis."""
