"""The HTTP surface: control, inference, events, health."""
