"""`python -m negaware`, and what the shell's `negaware` calls."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def entry() -> NoReturn:
    """Runs the command line and exits. Before a command runs, Ctrl-C ends the process without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from negaware.cli import main
    from negaware.commands.interrupted import INTERRUPTED
    from negaware.safe_path import keep_path_safe

    keep_path_safe()
    exit_code = main()
    distributed = sys.modules.get("torch.distributed")
    if exit_code == INTERRUPTED or "vllm" in sys.modules or (distributed and distributed.is_initialized()):
        # If the interrupt came during exec() of a string, Python would end itself by SIGINT instead of this exit code.
        # And vLLM, or a process group that this process hasn't left (after an error), may crash at a normal exit.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


if __name__ == "__main__":
    # `-m` puts the current folder first, where a copy.py would replace the library's.
    if not sys.flags.safe_path and sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(__file__)):
        del sys.path[0]
    entry()
