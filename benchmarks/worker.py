"""One contender's process: loads it, warms it up, then measures whenever the driver says so.

`python worker.py CONTENDER WORK.json ANSWERS_FD [ARGUMENTS]`; bench.py starts it.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
from pathlib import Path
from types import FrameType

from channel import Channel


def _end(signal_number: int, frame: FrameType | None) -> None:
    sys.exit(128 + signal_number)  # by an exception, so that a contender ends its own processes


def main() -> None:
    """Serves until standard input ends."""
    signal.signal(signal.SIGTERM, _end)
    contender, work_file, answers_fd, *arguments = sys.argv[1:]
    work = json.loads(Path(work_file).read_text(encoding="utf-8"))
    module = importlib.import_module(f"contenders.{contender}")
    module.serve(Channel(int(answers_fd)), work, json.loads(arguments[0]) if arguments else {})


if __name__ == "__main__":
    main()
