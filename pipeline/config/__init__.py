"""Settings: one section per room, and how they are resolved."""
