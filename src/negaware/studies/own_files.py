"""The user's own files that a run's result depends on, each with a hash of what is in it; paths and times say nothing.

What the hub has under a name is taken to stay as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from negaware.config import Config
from negaware.models.embedded import EMBEDDED_MODEL
from negaware.objective_options import LOSS
from negaware.tasks.benchmarks import file_name
from negaware.tasks.options import BenchmarkOptions, DatasetOptions
from negaware.user_code import UserFunction, find_function
from negaware.verifiers.function import JUDGE

CODE = ("objective.loss", "task.verifier", "evaluation.task.verifier")
"""Fields that name a function in a file."""
MODEL = "model.name"
"""The field that names a model's folder."""
TRAINING = ("objective.loss", "task.path", "task.name")
"""Fields whose files the evaluation before training doesn't depend on."""


class OwnFiles:
    """Hashes of what is in a config's files. Each file is read once: a model may be large."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        """Where losses and judges are looked for."""
        self._digests: dict[Path, str] = {}

    def of(self, config: Config) -> dict[str, str]:
        """By field; without those whose files aren't here. ValueError for a loss or a judge that isn't."""
        return {field: self._hash(files) for field, files in self._places(config) if files}

    def _places(self, config: Config) -> Iterator[tuple[str, list[Path]]]:
        """Each field with the files that it names."""
        names = (getattr(config.objective, "loss", None), config.task.verifier, config.evaluation.task.verifier)
        for field, name, purpose in zip(CODE, names, (LOSS, JUDGE, JUDGE), strict=True):
            if name:
                yield field, [_file_of(find_function(name, self.folders, purpose))]
        for place, task in ("task", config.task), ("evaluation.task", config.evaluation.task):
            if isinstance(task, DatasetOptions):
                path = Path(task.path)
                yield f"{place}.path", _files([path, *path.rglob("*")])
            if isinstance(task, BenchmarkOptions) and config.data_dir is not None:
                yield f"{place}.name", _files([config.data_dir / f"{file_name(task)}.jsonl"])
        if config.model.name != EMBEDDED_MODEL:
            yield MODEL, _files(Path(config.model.name).glob("*.safetensors"))

    def _hash(self, files: Sequence[Path]) -> str:
        """A file's own, or one of several in the order of their names."""
        digests = [self._digest(file) for file in files]
        return (digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest())[:16]

    def _digest(self, file: Path) -> str:
        if file not in self._digests:
            with file.open("rb") as content:
                self._digests[file] = hashlib.file_digest(content, "sha256").hexdigest()
        return self._digests[file]


def _files(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file() and not path.name.startswith("."))


def _file_of(function: UserFunction) -> Path:
    path = Path(function.folder, *function.module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")
