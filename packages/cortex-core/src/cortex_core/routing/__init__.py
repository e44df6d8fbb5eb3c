"""Which replica answers a request: resolve, filter, score, pick; and whether to try again."""
