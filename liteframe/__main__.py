"""`python -m liteframe`: the same as the `liteframe` command."""

import sys

from liteframe.cli.main import main

sys.exit(main())
