"""Processes beside the server's, for work that may hang, eat memory or crash."""
