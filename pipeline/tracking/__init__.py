"""Recording of runs in MLflow, and its registry of models."""
