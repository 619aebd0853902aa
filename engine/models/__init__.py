"""Decoder architectures, driven by one configuration."""
