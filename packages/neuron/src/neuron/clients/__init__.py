"""Where the neuron is a client: of the neurons with which it holds a model together."""
