"""`python -m cortex_cli` is the command `cortex`."""

import sys

from cortex_cli.main import main

sys.exit(main())
