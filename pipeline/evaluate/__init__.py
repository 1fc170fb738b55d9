"""Evaluation: scores of the saved model, with tables and images."""
