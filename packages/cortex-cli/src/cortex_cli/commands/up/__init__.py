"""`cortex up`: a fleet on this machine, in the foreground."""
