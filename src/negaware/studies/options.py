"""A study's file: a base config, named variants of it, seeds. `matrix.py` makes the runs from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from negaware.config import ConfigError, whole_field
from negaware.validation import Options, plain_switch, read_yaml, validated

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,=+-]*")
MAX_NAME = 100
MAX_SEEDS = 1000
ASSIGNMENTS = Sequence[tuple[list[str], Any]]
"""Fields of a config with values, as `config.set_field` takes them."""


class StudyError(ValueError):
    """The study can't be run as it is."""


def parse_seeds(value: object) -> object:
    """`0-4`, `0,1,2` or `0-2,7` → a list of whole numbers. ValueError for other text; other values stay as they are."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if not isinstance(value, str):
        return value
    seeds: list[int] = []
    for part in value.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,19})(?:\s*-\s*([0-9]{1,19}))?\s*", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if not 0 <= last - first < MAX_SEEDS:
            raise ValueError(
                f"{value!r} names no seeds, or more than {MAX_SEEDS:,}; write whole numbers such as 0,1,2 or a range "
                "such as 0-4"
            )
        seeds += range(first, last + 1)
    return seeds


def _plain(value: Any) -> Any:
    """The value without the marks that validation puts on true and false."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else plain_switch(value)


Fields = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else _plain(value))]


class StudyOptions(Options):
    """The fields of a study's file."""

    base: Path
    """Path of the config that all runs start from, relative to the study's file."""
    overrides: Fields = Field({})
    """Fields that replace the base config's in all runs, dotted or nested."""
    variants: dict[str, Fields] = Field(min_length=1)
    """Name → the fields that this variant sets; without fields it is the base config."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], BeforeValidator(parse_seeds)] = Field(
        min_length=1, max_length=MAX_SEEDS
    )
    """Each variant is run with each seed: [0, 1, 2], or 0-4."""
    reference: str = ""
    """The variant that all others are compared with; by default the first."""
    margins: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field({})
    """Measure, such as greedy_accuracy → the difference below which two variants match. Choose it before you see a
    result."""
    folder: Path | None = None
    """The study's folder, a path relative to the study's file; by default beside that file, with its name."""
    keep: Literal["model", "records"] = "model"
    """What is kept of a finished run's folder. model: all but the checkpoints; records: not the model either."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, fields in self.variants.items():
            if not NAME.fullmatch(name) or len(name) > MAX_NAME:
                raise ValueError(
                    f"variants: {name!r} can't name a file; use at most {MAX_NAME} letters, digits and ._,=+- and "
                    "begin with a letter or a digit"
                )
            _check_fields(fields, f"variants.{name}")
        _check_fields(self.overrides, "overrides")
        folded = [name.casefold() for name in self.variants]
        if len({*folded}) < len(folded):  # some file systems ignore capitals
            raise ValueError("variants: two names differ in capitals alone; choose others")
        if len({*self.seeds}) < len(self.seeds):
            raise ValueError(f"seeds are {', '.join(map(str, self.seeds))}; give each once")
        if not self.reference:
            object.__setattr__(self, "reference", next(iter(self.variants)))
        if self.reference not in self.variants:
            raise ValueError(f"reference is {self.reference!r}; it must be one of {', '.join(self.variants)}")
        return self


def _check_fields(fields: Mapping[str, Any], place: str) -> None:
    for field, _ in assignments(fields, place):
        if field in (["run"], ["run", "seed"], ["run", "folder"]):
            why = "a study takes the seeds from seeds and chooses a folder for each run"
            raise ValueError(f"{place}: {'.'.join(field)} can't be set; {why}")


def assignments(fields: Mapping[str, Any], place: str) -> ASSIGNMENTS:
    """Dotted or nested fields one by one, outer fields first. ConfigError for a field that is set twice."""
    found = sorted(_assignments(fields), key=lambda one: len(one[0]))
    names = [".".join(field) for field, _ in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{place} sets {name} twice; set it once")
    return found


def _assignments(fields: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[list[str], Any]]:
    """The fields inside a mapping, one by one; a mapping that chooses a variant (by name, loss or kind) as a whole."""
    for key, value in fields.items():
        field = [*above, *str(key).split(".")]
        if isinstance(value, Mapping) and value and not value.keys() & {"name", "loss", "kind"}:
            yield from _assignments(value, tuple(field))
        else:
            yield whole_field(field, value), value


def read_study(path: Path) -> StudyOptions:
    """The study of a YAML file. StudyError for the first fault in it."""
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"The study {path} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    except ValueError as error:
        raise StudyError(f"The study {path} is not YAML: {error}.") from error
    if not isinstance(data, dict):
        raise StudyError(f"The study {path} holds no fields; begin with `base: CONFIG.yaml`.")
    return checked_study({str(name): value for name, value in data.items()}, f"The study {path}: ")


def checked_study(data: dict[str, Any], prefix: str = "") -> StudyOptions:
    """The study of plain data. StudyError for the first fault in it; its sentence begins with `prefix`."""
    variants = data.get("variants")
    if isinstance(variants, dict):  # YAML reads the name 1 as a number
        data = data | {"variants": {str(name): fields for name, fields in variants.items()}}
    try:
        return validated(StudyOptions, data)
    except ValueError as error:
        raise StudyError(f"{prefix}{error}") from error
