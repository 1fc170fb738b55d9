"""The claims of 2012, measured again: `claims/` holds them, the other modules the framework."""
