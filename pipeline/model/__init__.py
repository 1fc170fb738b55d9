"""The networks: a registry, the AlexNet family, and the files that hold a network."""
