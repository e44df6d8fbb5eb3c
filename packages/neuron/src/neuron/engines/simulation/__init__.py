"""The parts of the simulated engine: time, text, and the answers of each route."""
