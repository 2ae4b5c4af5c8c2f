"""`python -m negaware`, and what the shell's `negaware` calls."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def entry() -> NoReturn:
    """The command line, and out. Until a command runs there is nothing to lose or to say: Ctrl-C ends the process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from negaware.cli import main
    from negaware.commands.interrupted import INTERRUPTED
    from negaware.safe_path import keep_path_safe

    keep_path_safe()
    exit_code = main()
    if exit_code == INTERRUPTED or "vllm" in sys.modules or _is_among_ranks():
        # Python ends itself by SIGINT, not with our code, if the interrupt happened to meet a string in exec(). And
        # vLLM, or a group whose other ranks have gone, may complain or crash when taken down with the interpreter.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


def _is_among_ranks() -> bool:
    """Whether this process has not left its group, as it does unless something went wrong."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_initialized()


if __name__ == "__main__":
    # `-m` puts the current folder first, where a copy.py would be taken for the library's.
    if not sys.flags.safe_path and sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(__file__)):
        del sys.path[0]
    entry()
