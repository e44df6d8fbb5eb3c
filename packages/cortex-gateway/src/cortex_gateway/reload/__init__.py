"""Settings that change while the gateway runs: read, compared, put in force."""
