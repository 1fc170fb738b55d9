"""From a good model to one that people use."""
