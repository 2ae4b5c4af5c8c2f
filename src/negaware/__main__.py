"""`python -m negaware` is the command line."""

import os
import sys

# `-m` puts the current folder first, where a copy.py would be taken for the library's.
if not sys.flags.safe_path and sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(__file__)):
    del sys.path[0]

from negaware.cli import entry

entry()
