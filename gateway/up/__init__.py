"""``branchline up``: Redis, a gateway and replicas on this machine, as one command."""
