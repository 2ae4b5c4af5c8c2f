"""Problems from rows with named columns: JSONL, Parquet, or a data set of the hub.

pyarrow is imported only to read a Parquet file, `datasets` only to read from the hub.
"""

from __future__ import annotations

import glob
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negaware.files import json_lines
from negaware.libraries import reason
from negaware.tasks.options import DatasetOptions, did_you_mean
from negaware.types import Problem

PlacedColumns = tuple[str, Mapping[str, Any]]
"""Where a row is, for messages (`problems.jsonl, line 3`), and its columns."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns a problem is read from; `gold` finds the answer in the answer column's text.

    `keep_row`: all columns go into the problem's metadata.
    """

    question: str
    answer: str | None
    id: str | None = None
    gold: Callable[[Any], Any] | None = None
    keep_row: bool = False


def dataset_problems(options: DatasetOptions) -> list[Problem]:
    """The problems of a file or hub data set. ValueError as in `read_rows` and `problems_from`."""
    rows = read_rows(options.path, options.subset, options.split)
    columns = Columns(
        options.question_column, options.answer_column, options.id_column, keep_row=bool(options.verifier)
    )
    return problems_from(itertools.islice(rows, options.num_problems), Path(options.path).stem, columns)


def read_rows(path: str, subset: str | None = None, split: str = "train") -> Iterator[PlacedColumns]:
    """The rows of a .jsonl or .parquet file, or of a hub data set. ValueError if it can't be read."""
    suffix = Path(path).suffix.lower()
    if suffix == ".jsonl":
        return read_jsonl(Path(path))
    if suffix == ".parquet":
        return _read_parquet(Path(path))
    if Path(path).is_dir() and glob.has_magic(str(Path(path).absolute())):
        raise ValueError(
            f"the folder {Path(path).absolute()} would be taken for a pattern, and others read; give it a name "
            "without *, ? and [, or give the path of a .jsonl or .parquet file"
        )
    return _load_dataset(path, subset, split)


def read_jsonl(path: Path) -> Iterator[PlacedColumns]:
    """One row for each non-blank line.

    ValueError for a line that isn't a JSON object in UTF-8, with its number, and for a file without a row.
    """
    _check_file(path)
    empty = True
    for where, row in json_lines(path.read_bytes().split(b"\n"), path, "each line must be one JSON object"):
        empty = False
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # only an escape such as \ud800 can write it
            raise ValueError(
                f"{where}: holds half of a character ({error.object[error.start]!a}), which is no text"
            ) from error
        yield where, row
    if empty:
        raise ValueError(f"{path} is empty; expected one JSON object a line")


def problems_from(rows: Iterable[PlacedColumns], name: str, columns: Columns) -> list[Problem]:
    """One problem for each row, with the id `name/number` if no column gives one.

    ValueError for a missing column, a question that isn't a non-empty text, a gold answer that is neither that nor a
    number, a repeated id, and no rows at all.
    """
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for number, (where, row) in enumerate(rows):
        question = _column(row, columns.question, where)
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"{where}: {columns.question!r} must be a non-empty text, got {question!r}")
        answer = "" if columns.answer is None else _answer(_column(row, columns.answer, where), columns, where)
        identifier = f"{name}/{number}" if columns.id is None else str(_column(row, columns.id, where))
        if identifier in places:
            raise ValueError(f"{where}: id {identifier!r} was already given ({places[identifier]})")
        places[identifier] = where
        problems.append(Problem(identifier, question.strip(), answer, dict(row) if columns.keep_row else {}))
    if not problems:
        raise ValueError(f"{name} has no rows; a task needs at least one problem")
    return problems


def _answer(value: Any, columns: Columns, where: str) -> str:
    """The gold answer as a text. A list of texts (OlympiadBench) is joined by commas."""
    if columns.gold:
        value = columns.gold(value)
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = ", ".join(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {columns.answer!r} must be a non-empty text or a number, got {value!r}")
    return value.strip()


def _column(row: Mapping[str, Any], column: str, where: str) -> Any:
    if column not in row:
        names = ", ".join(map(repr, row))
        raise ValueError(f"{where}: no column {column!r}, it has {names}{did_you_mean(column, row)}")
    return row[column]


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the path of a .jsonl or .parquet file")


def _read_parquet(path: Path) -> Iterator[PlacedColumns]:
    """The rows of this file; `datasets` would take a path such as `a[1].parquet` for a pattern."""
    _check_file(path)
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(f"reading {path} needs pyarrow ({error}); pip install 'negaware[data]'") from error
    try:
        with ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows))
    except (OSError, ArrowException) as error:
        raise ValueError(
            f"{path} could not be loaded ({reason(error)}); write it again, or see that it can be read"
        ) from error


def _load_dataset(name: str, subset: str | None, split: str) -> Iterator[PlacedColumns]:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"reading {name} needs datasets ({error}); pip install 'negaware[data]'") from error
    try:
        loaded = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{name} could not be loaded ({reason(error)}); check name, subset and split, or use local files (a path; "
            "of a named set --data-dir)"
        ) from error
    return ((f"{name}, row {number}", row) for number, row in enumerate(loaded))
