"""The command `cortex`: start a fleet, look at it, change it."""
