"""Grades a file of predictions: JSON lines in, verdicts in the same order out.

It reads the file twice, so that it writes nothing unless every line can be read.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Literal, TextIO, get_args

from negaware.files import json_lines, require_no_input, written_aside
from negaware.types import Reason, Verdict
from negaware.verifiers.math import MathVerifier

_CHUNK = 4096  # lines graded at once: enough to keep every worker busy

_EXAMPLE = '{"prediction": "\\\\boxed{4}", "gold": "4"}'


def _text(value: Any, key: str, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)
    raise ValueError(f"{where}: {key} is {json.dumps(value)[:40]}; give a text or a number")


def _pairs(file: BinaryIO, path: Path) -> Iterator[tuple[str, str]]:
    """The file's (prediction, gold) pairs from its start. ValueError, with the line's number, for any other line."""
    file.seek(0)
    for where, row in json_lines(file, path, f"write lines such as {_EXAMPLE}"):
        missing = [key for key in ("prediction", "gold") if key not in row]
        if missing:
            raise ValueError(f"{where}: no {' and no '.join(missing)}; write lines such as {_EXAMPLE}")
        yield _text(row["prediction"], "prediction", where), _text(row["gold"], "gold", where)


def _open(path: Path) -> BinaryIO:
    """A file that can be read twice; a pipe is copied to disk first. ValueError if it can't be opened."""
    try:
        file = open(path, "rb")  # noqa: SIM115
        if file.seekable():
            return file
        with file:
            copy = TemporaryFile()  # noqa: SIM115
            shutil.copyfileobj(file, copy)
            return copy
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; give a file of JSON lines such as {_EXAMPLE}") from None


def _write(file: TextIO, pairs: Iterator[tuple[str, str]], verifier: MathVerifier) -> Counter[str]:
    counts: Counter[str] = Counter()
    while chunk := list(islice(pairs, _CHUNK)):
        for verdict in verifier.grade_pairs([pair[0] for pair in chunk], [pair[1] for pair in chunk]):
            counts[verdict.reason] += 1
            row = {"correct": verdict.correct, "reason": verdict.reason, "extracted": verdict.extracted}
            file.write(json.dumps(row) + "\n")
    return counts


def grade(
    predictions: Sequence[str], golds: Sequence[str], extract: Sequence[str] | Literal["auto"] = "auto"
) -> list[Verdict]:
    """One verdict for each answer's text, against the gold answer in the same place. ValueError for unequal numbers."""
    if len(predictions) != len(golds):
        raise ValueError(f"grade needs a gold answer for each prediction, got {len(golds)} for {len(predictions)}.")
    with MathVerifier(extract) as verifier:
        return verifier.grade_pairs(list(predictions), list(golds))


def grade_file(
    input_path: str | Path,
    output: str | Path | None = None,
    extract: Sequence[str] | Literal["auto"] = "auto",
) -> Counter[str]:
    """Grades `input_path` into `output` (None: standard output); returns how often each reason was given.

    Lines {"prediction", "gold"} become {"correct", "reason", "extracted"}. ValueError for a malformed line, with its
    number, before anything is written; for an unknown extraction method; and if the output is the input.
    """
    path = Path(input_path)
    if output is not None:
        require_no_input(Path(output), [path])
    with MathVerifier(extract) as verifier, _open(path) as lines:
        if not sum(1 for _ in _pairs(lines, path)):
            raise ValueError(f"{path}: holds no line; write lines such as {_EXAMPLE}")
        pairs = _pairs(lines, path)
        if output is None:
            return _write(sys.stdout, pairs, verifier)
        target = Path(output)
        try:
            with written_aside(target, f".{os.getpid()}") as aside, open(aside, "w", encoding="utf-8") as file:
                return _write(file, pairs, verifier)
        except OSError as error:
            raise ValueError(f"{target}: {error.strerror}; give a path that can be written") from None


def grade_command(file: str | Path, output: str | Path | None, extract: str | Sequence[str]) -> None:
    """`negaware grade`: verdicts to `output` or standard output, a one-line summary to standard error.

    `extract` is "auto", or method names, in one text with commas between them or as a sequence.
    """
    methods = extract.split(",") if isinstance(extract, str) and extract != "auto" else extract
    counts = grade_file(file, output, methods)
    total = counts.total()
    reasons = ", ".join(f"{counts[reason]} {reason.replace('_', ' ')}" for reason in get_args(Reason) if counts[reason])
    print(f"{total} graded: {reasons} ({counts['correct'] / total:.1%} correct)", file=sys.stderr)
