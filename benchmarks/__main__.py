"""`python -m benchmarks`: all of them, one after the other."""

from benchmarks import relay, translate

translate.main()
relay.main()
