"""This gateway and others side by side, before the same node and under the same load."""
