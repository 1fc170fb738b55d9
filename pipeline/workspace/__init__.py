"""A work directory with a recipe and settings, and what is done there."""
