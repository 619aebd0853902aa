"""Device arithmetic; other packages import only ``ops``."""
