"""The gateway's HTTP surface, one module per dialect or subject."""
