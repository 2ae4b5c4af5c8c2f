"""Problems out of rows with named columns: JSONL, Parquet, or a data set of the hub.

It knows neither prompts nor verifiers. `datasets` is imported when a Parquet file or the hub is read.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    suffix = Path(path).suffix
    if suffix == ".jsonl":
        return read_jsonl(Path(path))
    if suffix == ".parquet":
        _check_file(Path(path))
        return _load_dataset(path, "parquet", data_files=path, split="train")
    return _load_dataset(path, path, subset, split=split)


def read_jsonl(path: Path) -> Iterator[Row]:
    """One row a non-blank line. Raises ValueError with the line's number for what isn't a JSON object in UTF-8,
    and for a file with no row."""
    _check_file(path)
    empty = True
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        empty = False
        where = f"{path}, line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not valid JSON ({error}); each line must be one JSON object") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}")
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


def _load_dataset(source: str, *arguments: Any, **options: Any) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"reading {source} needs datasets ({error}); pip install 'negaware[data]'") from error
    try:
        loaded = datasets.load_dataset(*arguments, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        hub = "check name, subset and split, or use local files (a path; of a named set --data-dir)"
        remedy = "write it again, or see that it can be read" if source.endswith(".parquet") else hub
        raise ValueError(f"{source} could not be loaded ({reason(error)}); {remedy}") from error
    return ((f"{source}, row {number}", row) for number, row in enumerate(loaded))
