"""Tokens to logits: schedule, cache, run, sample."""
