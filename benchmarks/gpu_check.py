"""Whether what only a GPU can run does run there, in five minutes: one process a part, written to gpu-check.json.

The driver: it starts the parts of gpu_parts.py one after another, so that one that crashes, hangs or poisons the device
leaves the others theirs, and writes the file after each. It knows neither torch nor models. On a machine without a GPU,
or with --toy, the same parts run on the CPU at toy size.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

PARTS = {
    "graphs": 60,
    "flex": 60,
    "nft_step": 60,
    "decode": 75,
    "training_1k": 60,
    "training_4k": 60,
    "conformance": 150,
}
"""In this order, each with the seconds that it may take on a GPU: what is small and most telling comes first."""
PACKAGES = ("torch", "transformers", "triton", "peft", "accelerate", "hypothesis", "pydantic", "pytest")


def gpus() -> list[str]:
    """Name, driver and memory of each, as nvidia-smi says them; none without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return said.strip().splitlines()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def run_part(name: str, arguments: Sequence[str], seconds: float) -> dict[str, Any]:
    """State, seconds, figures and error of a part, run in a process group of its own, killed whole when time is up."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        result = Path(folder, "result.json")
        command = [sys.executable, str(Path(__file__).with_name("gpu_parts.py")), name, str(result), *arguments]
        child = subprocess.Popen(command, start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        try:
            code: int | None = child.wait(timeout=max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        found: dict[str, Any] = {"state": "failed", "figures": {}}
        if result.exists():
            found |= json.loads(result.read_text(encoding="utf-8"))
        elif code is None:
            found["error"] = f"not done after {seconds:.0f} s"
        else:
            found["error"] = f"its process ended with {code} and left no result"
    return found | {"seconds": round(time.monotonic() - start, 1)}


def write(report: dict[str, Any], output: Path) -> None:
    """Whole or not at all: the time may run out while it is written."""
    written = output.with_name(output.name + ".new")
    written.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    written.replace(output)


def stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that the part's processes are killed and what is known is written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="on the CPU, at toy size")
    parser.add_argument("--output", type=Path, default=Path("gpu-check.json"))
    parser.add_argument("--seconds", type=float, default=285, help="for all parts together")
    parser.add_argument("--part", action="append", choices=PARTS, help="these alone; all by default")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    start, found = time.monotonic(), gpus()
    toy = options.toy or not found
    chosen = [name for name in PARTS if not options.part or name in options.part]
    report: dict[str, Any] = {
        "machine": {"gpus": found, "cpu_cores": os.cpu_count(), "system": platform.platform()},
        "versions": versions(),
        "device": "cpu" if toy else "cuda",
        "size": "toy" if toy else "0.5B",
        "parts": {name: {"state": "not run"} for name in chosen},
    }
    try:
        for name in chosen:
            write(report, options.output)
            left = options.seconds - (time.monotonic() - start)
            if left <= 0:
                break
            print(f"── {name}", flush=True)
            report["parts"][name] = {"state": "cut short"}
            part = run_part(name, [report["device"]], left if toy else min(left, PARTS[name]))
            report["parts"][name] = part
            print(f"   {part['state']} in {part['seconds']} s: {part['figures'] or part.get('error')}", flush=True)
    finally:
        report["seconds"] = round(time.monotonic() - start, 1)
        write(report, options.output)
    states = [part["state"] for part in report["parts"].values()]
    print(f"{states.count('passed')} of {len(states)} parts passed in {report['seconds']} s: {options.output}")
    return 0 if set(states) == {"passed"} else 1


if __name__ == "__main__":
    sys.exit(main())
