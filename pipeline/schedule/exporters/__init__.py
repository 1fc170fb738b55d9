"""Files by which other engines run a schedule."""
