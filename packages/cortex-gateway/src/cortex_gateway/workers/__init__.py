"""Several processes on one listening socket: who serves the requests, and who decides."""
