"""Adapters: what they are, where each one is, how a batch uses them."""
