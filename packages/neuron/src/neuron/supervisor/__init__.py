"""The one owner of every replica: loads, unloads, admits, and reports."""
