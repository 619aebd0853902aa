"""Where a request goes: pure policies over a snapshot of the fleet."""
