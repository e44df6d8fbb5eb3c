"""The gateway: one address in front of a fleet of neurons."""
