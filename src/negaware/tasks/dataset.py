"""Problems out of rows with named columns: JSONL, Parquet, or a data set of the hub.

It knows neither prompts nor verifiers. pyarrow is imported when a Parquet file is read, `datasets` when the hub is.
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

Row = tuple[str, Mapping[str, Any]]
"""Where a row stands, for messages (`problems.jsonl, line 3`), and its columns."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns a problem is read from; `gold` takes the answer out of what the answer column holds.

    `keep_row`: all columns go into the problem's metadata.
    """

    question: str
    answer: str | None
    id: str | None = None
    gold: Callable[[Any], Any] | None = None
    keep_row: bool = False


def dataset_problems(options: DatasetOptions) -> list[Problem]:
    """The problems of a file or hub data set. Raises ValueError for all that `read_rows` and `read_problem` do."""
    rows = read_rows(options.path, options.subset, options.split)
    given = options.question_column, options.answer_column, options.id_column
    columns = Columns(*given, keep_row=bool(options.verifier))
    return problems_from(itertools.islice(rows, options.num_problems), Path(options.path).stem, columns)


def read_rows(path: str, subset: str | None = None, split: str = "train") -> Iterator[Row]:
    """The rows of a .jsonl or .parquet file, or of a hub data set. Raises ValueError where it can't be read."""
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


def read_jsonl(path: Path) -> Iterator[Row]:
    """One row a non-blank line. Raises ValueError with the line's number for what isn't a JSON object in UTF-8,
    and for a file with no row."""
    _check_file(path)
    empty = True
    for where, row in json_lines(path.read_bytes().split(b"\n"), path, "each line must be one JSON object"):
        empty = False
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # escapes alone can spell it
            raise ValueError(
                f"{where}: holds half of a character ({error.object[error.start]!a}), which is no text"
            ) from error
        yield where, row
    if empty:
        raise ValueError(f"{path} is empty; expected one JSON object a line")


def problems_from(rows: Iterable[Row], name: str, columns: Columns) -> list[Problem]:
    """One problem a row, `name/number` its id where no column gives one.

    Raises ValueError for a missing column, a question or gold answer that isn't a non-empty text (numbers do as
    answers), an id that came before, and no rows at all.
    """
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for number, (where, row) in enumerate(rows):
        question = _column(row, columns.question, where)
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"{where}: {columns.question!r} must be a non-empty text, got {question!r}")
        answer = _answer(row, columns, where)
        identifier = f"{name}/{number}" if columns.id is None else str(_column(row, columns.id, where))
        if identifier in places:
            raise ValueError(f"{where}: id {identifier!r} was already given ({places[identifier]})")
        places[identifier] = where
        problems.append(Problem(identifier, question.strip(), answer, dict(row) if columns.keep_row else {}))
    if not problems:
        raise ValueError(f"{name} has no rows; a task needs at least one problem")
    return problems


def _answer(row: Mapping[str, Any], columns: Columns, where: str) -> str:
    if columns.answer is None:
        return ""
    value = _column(row, columns.answer, where)
    return _gold(columns.gold(value) if columns.gold else value, f"{where}: {columns.answer!r}")


def _gold(value: object, where: str) -> str:
    """The gold answer as text. A list of texts (OlympiadBench) is joined by commas."""
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = ", ".join(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} must be a non-empty text or a number, got {value!r}")
    return value.strip()


def _column(row: Mapping[str, Any], column: str, where: str) -> Any:
    if column not in row:
        suggestion = did_you_mean(column, row)
        raise ValueError(f"{where}: no column {column!r}, it has {', '.join(map(repr, row))}{suggestion}")
    return row[column]


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the path of a .jsonl or .parquet file")


def _read_parquet(path: Path) -> Iterator[Row]:
    """The rows of this very file: `datasets` would take a path such as `a[1].parquet` for a pattern."""
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


def _load_dataset(name: str, subset: str | None, split: str) -> Iterator[Row]:
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
