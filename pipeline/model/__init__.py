"""The networks: AlexNet in its variants, with pixel preprocessing inside."""
