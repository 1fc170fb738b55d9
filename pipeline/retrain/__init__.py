"""Retrain: when a retraining is due, and what became of each time that it was."""
