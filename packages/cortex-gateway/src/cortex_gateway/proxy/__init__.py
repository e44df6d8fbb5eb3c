"""The data path: one request from the caller to a replica and back."""
