"""Writes docs/config.md, every field of a config, from the models that check it: `python docs/config_reference.py`.

It knows no field by name but the two that tell a task or an objective from another.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from negaware.config import Config

PAGE = Path(__file__).with_name("config.md")
HEADING = """# Every field of a config

A config is a YAML file with these fields; `negaware train CONFIG.yaml --field.name VALUE` overrides any of them, and
`--dry-run` prints them all with their values. A task or an objective with its defaults is its name alone, such as
`task: gsm8k:test` or `objective: nft`. A loss of your own is `objective: {loss: "module:function", …}`, with its own
options ([CONTRIBUTING](../CONTRIBUTING.md#add-an-objective)).

`base: other.yaml` at the top, a path from the file's own folder, takes the fields of another config; what the file has
itself comes first. Sections are merged field by field, but a task, an objective and an engine are taken whole.
`configs/paper/` is written so.

Made from the code by `python docs/config_reference.py`.
"""
WORDS = {int: "whole number", float: "number", str: "text", Path: "path", dict[str, Any]: "mapping"}
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def reference() -> str:
    """The whole page: one table a model, each where it is first used."""
    places: dict[type[BaseModel], str] = {Config: ""}
    for model in (queue := [Config]):
        for name, field in model.model_fields.items():
            for inner in _models(field.annotation):
                if inner not in places:
                    places[inner] = f"{places[model]}.{name}".lstrip(".")
                    queue.append(inner)
    top = ["", *Config.model_fields]
    order = sorted(places, key=lambda model: (top.index(places[model].split(".")[0]), places[model]))
    return HEADING + "".join(_section(model, places) for model in order)


def _section(model: type[BaseModel], places: dict[type[BaseModel], str]) -> str:
    place = places[model]
    kind = next((f"{name}: {field.default}" for name, field in model.model_fields.items() if _is_tag(field)), "")
    title = f"`{place}`" + (f" with `{kind}`" if kind else "") if place else "At the top"
    rows = []
    for name, field in model.model_fields.items():
        if not _is_tag(field):
            inner = [places[one] for one in _models(field.annotation)]
            kind = f"fields, see `{inner[0]}`" if inner else _type(field)
            rows.append(f"| `{name}` | {kind} | {_default(field)} | {' '.join((field.description or '').split())} |")
    table = ["", "| field | type | default | meaning |", "|---|---|---|---|", *rows] if rows else []
    return "\n".join([f"\n## {title}\n", inspect.getdoc(model) or "", *table]) + "\n"


def _is_tag(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal and get_args(field.annotation) == (field.default,)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _type(field: FieldInfo) -> str:
    """The type in words that a user of YAML knows, with its bounds."""
    limits = [
        f"{sign} {getattr(constraint, name):g}"
        for constraint in field.metadata
        for name, sign in SIGNS.items()
        if hasattr(constraint, name)
    ]
    return f"{_words(field.annotation)} {', '.join(limits)}".rstrip()


def _words(annotation: Any) -> str:
    arguments = get_args(annotation)
    match get_origin(annotation):
        case origin if origin is Literal:
            return ", ".join(f"`{value}`" for value in arguments)
        case origin if origin in (Union, UnionType):
            return " or ".join(_words(argument) for argument in arguments if argument is not NoneType)
        case origin if origin is tuple:
            return f"list of {_words(arguments[0])}" if Ellipsis in arguments else f"{len(arguments)} numbers"
    return WORDS[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.default
    if isinstance(value, BaseModel):
        value = getattr(value, "name", {})
    if isinstance(value, tuple):
        value = f"[{', '.join(map(str, value))}]"
    if isinstance(value, str) and "\n" in value:
        value = value.replace("\n", "\\n")
    return "none" if value is None else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
