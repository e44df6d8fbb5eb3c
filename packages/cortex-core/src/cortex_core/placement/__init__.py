"""Where models live: which nodes could hold one, which can now, and what to load."""
