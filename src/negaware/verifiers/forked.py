"""Imported by the fork server alone, before it forks the first worker: the slowest library, and its own tidiness."""

import negaware.verifiers.symbolic  # noqa: F401
from negaware.verifiers.worker import _tidy_server

_tidy_server()
