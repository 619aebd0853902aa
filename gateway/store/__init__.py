"""What admins made: tenants, keys, adapters and aliases, the same at every gateway."""
