"""The only rooms that speak HTTP as a client: to neurons, through aiohttp."""
