"""The neuron: the daemon that owns one machine's devices and the models on them."""
