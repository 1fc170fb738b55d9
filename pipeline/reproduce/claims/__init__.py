"""reproduce/claims."""
