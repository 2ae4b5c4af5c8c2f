"""`python -m negaware` is the command line."""

from negaware.cli import entry

entry()
