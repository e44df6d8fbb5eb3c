"""A neuron under many commands in random order, whose books must be right after each."""
