"""The command line: its commands, their errors and exit codes.

An error that the user can correct gives one sentence and exit code 2; Ctrl-C gives 130. Each command imports large
libraries only when it runs, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from negaware import __version__
from negaware.arguments import Parser
from negaware.commands import audit, compare, evaluate, grade, plan, report, study, train
from negaware.commands.interrupted import HOW_TO_GO_ON, INTERRUPTED, interrupted
from negaware.complaint import sentence_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("train", "compare", "plan"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.overrides = rest
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # OpenMP's threads spin for milliseconds while they wait, which costs two thirds of the speed beside any other busy
    # process; without spinning, each small operation waits for a thread to wake (docs/performance.md). torch reads it
    # at its import.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from negaware.models.cpu.memory import keep_freed_memory

    keep_freed_memory()
    for name in ("stdout", "stderr"):  # a daemon may start us with either closed
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as `entry` leaves it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run: Callable[[argparse.Namespace], int | None] = options.run
        exit_code = run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the process at once, without a traceback
        print(interrupted(options.command), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has gone (`| head`): nothing can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if options.command not in HOW_TO_GO_ON or options.dry_run:
            return 0
        return _failed(f"nobody reads the output any more. {HOW_TO_GO_ON[options.command]}")
    except Exception as error:
        if (sentence := sentence_of(error)) is None:
            raise
        return _failed(sentence)
    return exit_code or 0


def _failed(sentence: str) -> int:
    """Prints the error; returns its exit code. Other ranks wait, for torchrun ends them if the first rank fails too."""
    place, rank = "", os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(2)
        place = f" on rank {rank}"
    print(f"negaware: error{place}: {sentence}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="negaware", description="Trains a language model on its own right and wrong answers (NFT).")
    parser.add_argument("--version", action="version", version=f"negaware {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (train, plan, evaluate, grade, audit, report, study, compare):
        command.add(commands)
    return parser


if __name__ == "__main__":
    from negaware.__main__ import entry

    entry()
