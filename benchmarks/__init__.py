"""Measurements. They print ratios of one run on one machine, and assert nothing."""
