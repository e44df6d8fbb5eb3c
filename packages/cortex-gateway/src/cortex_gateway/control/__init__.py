"""What the gateway knows of the fleet, how it learns it, and how it acts on it."""
