"""The fleet as one immutable value, how it changes, and how it is shown."""
