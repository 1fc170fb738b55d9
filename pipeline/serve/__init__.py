"""`alexnet serve`: the champion over HTTP. `routes.ROUTES` is the table of endpoints."""
