"""The benchmark's driver: runs the contenders in turn, pairs their measurements, prints tables and one JSON line.

It measures nothing itself; each contender has a process of its own, and only one of them works at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from figures import measurement_table, number, ratio_table
from rows import CORES, Row, all_rows, default_vllm_python
from work import LIMITS, write_work
from workers import BenchError, WorkerDiedError, Workers

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DO_NOT_TRACK": "1",
    "PYTHONUNBUFFERED": "1",
}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    information = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in information if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": names[0] if names else "unknown", "cores": CORES, "memory_gb": round(memory, 1)}


def commit() -> str:
    """The commit that was measured, with `+` if the tree has been changed since; "unknown" outside of git."""
    try:
        name = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("+" if changed else "")


def say(text: str) -> None:
    """Prints now: a benchmark is watched."""
    print(text, flush=True)


def load(row: Row, workers: Workers) -> None:
    """Starts the row's workers that don't run yet, one after the other."""
    for contender in dict.fromkeys(contestant.contender for contestant in row.contestants):
        if contender not in workers.running:
            start = time.perf_counter()
            workers.get(contender)
            say(f"  loaded and warmed up {contender.module} in {time.perf_counter() - start:.0f} s")
    if row.warm_up:
        for contestant in row.contestants:
            workers.get(contestant.contender).ask(contestant.command)


def run_row(row: Row, repeats: int, workers: Workers) -> dict[str, list[dict[str, Any]]]:
    """The row's measurements: every contestant in turn, `repeats` times."""
    say(f"\n{row.title}")
    load(row, workers)
    measured: dict[str, list[dict[str, Any]]] = {contestant.label: [] for contestant in row.contestants}
    shown = list(row.columns.items())[:2]
    start = time.perf_counter()
    for repeat in range(repeats):
        for index, contestant in enumerate(row.contestants):
            found = workers.get(contestant.contender).ask(contestant.command)
            if "answers" in found and "tokens" in found:
                found["mean_tokens"] = found["tokens"] / found["answers"]
            measured[contestant.label].append(found)
            values = ", ".join(f"{number(found[key])} {heading}" for key, heading in shown if key in found)
            share = (repeat + (index + 1) / len(row.contestants)) / repeats
            left = (time.perf_counter() - start) * (1 - share) / share if repeat else None
            ending = "" if left is None else f"  ({left:.0f} s left in this row)"
            say(f"  {repeat + 1}/{repeats}  {contestant.label}: {values}{ending}")
    return measured


def run(rows: Sequence[Row], repeats: int, logs: Path) -> dict[str, Any]:
    """All rows, their tables printed; the JSON line's content."""
    work_file = logs / "work.json"
    write_work(work_file, LIMITS)
    results: dict[str, Any] = {}
    measurements: dict[str, Any] = {}
    with Workers(work_file, logs, ENVIRONMENT) as workers:
        for index, row in enumerate(rows):
            needed = {contestant.contender for later in rows[index:] for contestant in later.contestants}
            workers.keep_only(needed)
            measured = run_row(row, repeats, workers)
            measurements[row.name] = measured
            say("\n" + measurement_table(measured, row.columns))
            if row.figures:
                say("\n" + ratio_table(row.figures, measured))
            results |= {figure.name: round(figure.value(measured), 4) for figure in row.figures}
        versions = workers.versions
    (logs / "measurements.json").write_text(json.dumps(measurements, indent=1), encoding="utf-8")
    return {"machine": machine(), "versions": versions, "commit": commit()} | results


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the 24-token step against TRL and the limit")
    parser.add_argument("--rows", help="only these rows, separated by commas")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each contender")
    parser.add_argument("--output", type=Path, help="also write the JSON line to this file")
    parser.add_argument("--logs", type=Path, help="folder for the workers' output and all measurements")
    parser.add_argument("--vllm-python", default=default_vllm_python(str(ROOT)), help="the python that has vLLM")
    return parser.parse_args()


def chosen_rows(options: argparse.Namespace) -> list[Row]:
    """The rows that were asked for. BenchError for a row that isn't there or a python that can't be run."""
    rows = {row.name: row for row in all_rows(options.vllm_python)}
    if options.rows:
        unknown = [name for name in options.rows.split(",") if name not in rows]
        if unknown:
            raise BenchError(f"There is no row {unknown[0]!r}; the rows are {', '.join(rows)}.")
        return [rows[name] for name in options.rows.split(",")]
    return [row for row in rows.values() if row.quick or not options.quick]


def require(rows: Sequence[Row], repeats: int) -> None:
    """BenchError where the rows can't be run."""
    if repeats < 1:
        raise BenchError(f"--repeats is {repeats}; measure at least once.")
    for contender in {contestant.contender for row in rows for contestant in row.contestants}:
        if not os.access(contender.python, os.X_OK):
            raise BenchError(f"The contender {contender.module} needs {contender.python}; `make bench` installs it.")


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Exit code 0, 1 if a worker died, 2 for what the user can mend, 130 after Ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)
    options = arguments()
    try:
        rows = chosen_rows(options)
        require(rows, options.repeats)
        logs = options.logs or Path(tempfile.mkdtemp(prefix="negaware-bench-"))
        logs.mkdir(parents=True, exist_ok=True)
        result = run(rows, options.repeats, logs)
        line = json.dumps(result)
        if options.output:
            options.output.write_text(line + "\n", encoding="utf-8")
    except (BenchError, OSError, ValueError, ImportError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1 if isinstance(error, WorkerDiedError) else 2
    except KeyboardInterrupt:
        print("bench: interrupted; all workers ended", file=sys.stderr)
        return 130
    say("\n" + line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
