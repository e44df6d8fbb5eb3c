"""Harnesses: what brings up engines, real and simulated."""
