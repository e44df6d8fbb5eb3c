"""Load on a fleet, and what callers saw of it."""
