"""`python -m negaware` is the command line."""

import sys

from negaware.cli import main

sys.exit(main())
