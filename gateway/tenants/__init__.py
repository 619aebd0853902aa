"""Who may use the fleet, on what terms, and the keys that say so."""
