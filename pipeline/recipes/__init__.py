"""Packaged settings, one YAML file for each kind of dataset."""
