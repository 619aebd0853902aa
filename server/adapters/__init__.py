"""Adapters that come, change and go while traffic runs: from a source to a name that answers."""
