"""Messages as they cross process borders, one module per protocol."""
