"""The user's files that a run's result depends on, each with a hash of its content.

Paths and times of files don't count. What a name on the hub stands for is assumed not to change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from negaware.config import Config
from negaware.models.embedded import EMBEDDED_MODEL
from negaware.objective_options import LOSS
from negaware.tasks.benchmarks import file_name
from negaware.tasks.options import BenchmarkOptions, DatasetOptions
from negaware.user_code import find_function
from negaware.verifiers.function import JUDGE

CODE = ("objective.loss", "task.verifier", "evaluation.task.verifier")
"""Fields that name a function in a file."""
MODEL = "model.name"
"""The field that names a model's folder."""
TRAINING = ("objective.loss", "task.path", "task.name")
"""Fields whose files the evaluation before training doesn't depend on."""


class UserFiles:
    """Hashes the user's files that configs name. Each file is read once, since a model may be large."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        """Where losses and judges are looked for."""
        self._digest = cache(_digest)

    def hashes(self, config: Config) -> dict[str, str]:
        """Field → hash, without fields whose files aren't here. ValueError if a loss or a judge isn't found."""
        return {field: self._hash(files) for field, files in self._files(config) if files}

    def _files(self, config: Config) -> Iterator[tuple[str, list[Path]]]:
        names = (getattr(config.objective, "loss", None), config.task.verifier, config.evaluation.task.verifier)
        for field, name, purpose in zip(CODE, names, (LOSS, JUDGE, JUDGE), strict=True):
            if name:
                function = find_function(name, self.folders, purpose)
                path = Path(function.folder, *function.module.split("."))
                yield field, [path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")]
        for place, task in ("task", config.task), ("evaluation.task", config.evaluation.task):
            if isinstance(task, DatasetOptions):
                path = Path(task.path)
                yield f"{place}.path", _existing([path, *path.rglob("*")])
            if isinstance(task, BenchmarkOptions) and config.data_dir is not None:
                yield f"{place}.name", _existing([config.data_dir / f"{file_name(task)}.jsonl"])
        if config.model.name != EMBEDDED_MODEL:
            yield MODEL, _existing(Path(config.model.name).glob("*.safetensors"))

    def _hash(self, files: Sequence[Path]) -> str:
        """The hash of one file, or of several in the order of their names."""
        digests = [self._digest(file) for file in files]
        return (digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest())[:16]


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _existing(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file() and not path.name.startswith("."))
