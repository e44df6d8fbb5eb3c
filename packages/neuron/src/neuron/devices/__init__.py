"""Devices: what the driver says of them, and one worker for each."""
