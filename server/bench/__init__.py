"""The load client behind ``branchline bench``."""
