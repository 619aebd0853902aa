"""Adapters of the whole fleet: their names and versions, and which replicas hold them."""
