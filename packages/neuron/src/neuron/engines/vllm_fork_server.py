"""Imported by the fork server before anything else: ends it with the daemon.

A fork server notices the end of its parent only when it has imported everything else.
"""

from neuron.engines import watchdog

watchdog.end_with_parent()
