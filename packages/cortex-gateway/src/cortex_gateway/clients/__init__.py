"""The only rooms that speak HTTP as a client.

Requests of callers go to nodes over connections of our own (`upstream`); what the control plane
asks of neurons, which is seldom, goes through aiohttp (`node`).
"""
