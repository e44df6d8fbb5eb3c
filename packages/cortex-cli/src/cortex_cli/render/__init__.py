"""Answers of a gateway as text for a terminal. Pure."""
