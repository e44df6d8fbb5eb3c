"""A fleet on virtual time: the decisions of the gateway, run on machines that do not exist."""
