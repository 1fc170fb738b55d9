"""Training: one explicit loop for one device or many."""
