"""YAML → plain data → options that pydantic has checked.

An error is one sentence: the field, its value, what is expected.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

Root = TypeVar("Root", bound=BaseModel)


class Options(BaseModel):
    """Options. Unknown fields, NaN and infinity are refused; a field's docstring is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def named(value: object, default: str | None = None) -> object:
    """`{name: vllm}` for `vllm`, before a model validates it; options without a name get the `default`."""
    if isinstance(value, dict):
        return value if default is None else {"name": default} | value
    return value if isinstance(value, BaseModel) else {"name": value}


def listed(value: object) -> object:
    """A list of one for a text, before a field that takes a list of texts."""
    return (value,) if isinstance(value, str) else value


MAX_VALUES = 100_000
"""Of one text. A value counts as often as an alias repeats it: a few lines of aliases can mean billions of values."""
MAX_CHARACTERS = 1_000_000


def read_yaml(text: str) -> Any:
    """The plain data of a text.

    ValueError if it isn't YAML, has a field twice, holds half of a character, is nested too deeply (or in itself), or
    has more than MAX_VALUES.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, and at most {MAX_CHARACTERS:,} are read")
    try:
        return yaml.load(text, _Loader)  # raises ValueError for an invalid date
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply, or in itself") from error
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:  # a tag that doesn't fit its value
        raise ValueError(f"a value that YAML can't build ({error})") from error


class _Loader(yaml.SafeLoader):
    """Refuses a mapping with a field twice, of which YAML would silently take the last, and too many values."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _num_values(node, {}) > MAX_VALUES:
            raise yaml.MarkedYAMLError(problem=f"it stands for more than {MAX_VALUES:,} values")
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        if any("\ud800" <= character <= "\udfff" for character in node.value):
            raise yaml.MarkedYAMLError(problem="found half of a character", problem_mark=node.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            field = key.tag, str(key.value)
            if field in seen:
                raise yaml.MarkedYAMLError(problem=f"found {key.value} twice", problem_mark=key.start_mark)
            seen.add(field)
        return node


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values in a node's tree, aliases included. RecursionError for a node that contains itself."""
    if id(node) not in known:
        known[id(node)] = -1
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_num_values(part, known) for part in inner)
    if known[id(node)] < 0:
        raise RecursionError
    return known[id(node)]


def validated(root: type[Root], data: dict[str, Any], how_to_add: str = "add it") -> Root:
    """The options of class `root` from plain data.

    ValueError for the first error; `how_to_add` says what to do about a missing {field}. Unknown fields are reported
    before missing ones: a field may be missing because its name was mistyped.
    """
    try:
        return root.model_validate(_with_switches(data))
    except ValidationError as error:
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        raise ValueError(_explain(first, root, how_to_add)) from error


class _Switch:
    """true or false in the data, for pydantic would accept a bool as the number 1 or 0."""

    def __init__(self, value: bool) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


def plain_switch(value: Any) -> Any:
    """The bool again, before a field that takes one."""
    return value.value if isinstance(value, _Switch) else value


def _with_switches(value: Any) -> Any:
    if isinstance(value, dict):  # reasoning-gym's parameters may be true or false
        return {name: inner if name == "parameters" else _with_switches(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_switches(inner) for inner in value]
    return _Switch(value) if isinstance(value, bool) else value


_EXPECTED = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a mapping of fields"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    "finite_number": "a finite number",
    "string_type": "a text",
    "path_type": "a path",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
}
"""By pydantic's kind of error: what was expected."""


def _explain(error: Any, root: type[BaseModel], how_to_add: str) -> str:
    """pydantic's error about options of class `root`, as one sentence."""
    path, models = _walk(error["loc"], root)
    field, kind, context = ".".join(path) or "the config", error["type"], error.get("ctx", {})
    got = f"{field} is {_shown(error['input'])}"
    match kind:
        case "extra_forbidden":
            holders = _walk(error["loc"][:-1], root)[1]
            names = [*holders[0].model_fields] if holders else []
            near = difflib.get_close_matches(path[-1], names, n=1)
            hint = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else f"known are {', '.join(names)}."
            return f"{field} is no known field; {hint}"
        case "missing" if path[-1].isdecimal():
            return f"{'.'.join(path[:-1])} is {_shown(error['input'])}; it has too few items."
        case "missing":
            return f"{field} is missing; {how_to_add.format(field=field)}."
        case "union_tag_not_found":
            tags = ", ".join(tag for model in models for tag in _tags(model))
            return f"{got}, which has no {_tag_name(context)}; it must be one of {tags}."
        case "union_tag_invalid":
            # `objective: nft` is short for {name: nft}.
            tagged = field if _tag_name(context) == "name" else f"{field}.{_tag_name(context)}"
            return f"{tagged} is {context['tag']!r}; {_choose(context['tag'], context['expected_tags'])}"
        case "literal_error":
            return f"{got}; {_choose(str(error['input']), context['expected'].replace(' or ', ', '))}"
        case "value_error":
            message = error["msg"].removeprefix("Value error, ")
            return f"{field}: {message}." if path else f"{message}."
    if kind in _EXPECTED:
        return f"{got}; it should be {_EXPECTED[kind].format(**context)}."
    return f"{got}; {error['msg'][0].lower()}{error['msg'][1:]}."


def _tag_name(context: dict[str, Any]) -> str:
    return str(context["discriminator"]).strip("'")


def _choose(value: str, expected: str) -> str:
    """What to write instead, where `expected` are quoted names with commas between."""
    names = [name.strip("' ") for name in expected.split(",")]
    near = difflib.get_close_matches(value, names, n=1)
    return f"it must be one of {', '.join(names)}{f'; did you mean {near[0]}?' if near else '.'}"


def _walk(location: Sequence[str | int], root: type[BaseModel]) -> tuple[list[str], list[type[BaseModel]]]:
    """The path of a pydantic location without its union tags, and the options' classes that are possible there."""
    path: list[str] = []
    models: list[type[BaseModel]] = [root]
    for part in map(str, location):
        tagged = [model for model in models if part in _tags(model)]
        if len(models) > 1 and tagged:
            models = tagged
        else:
            path.append(part)
            field = models[0].model_fields.get(part) if models else None
            models = _models(field.annotation) if field else []
    return path, models


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    tags = [get_args(field.annotation) for name, field in model.model_fields.items() if name in ("kind", "name")]
    return tags[0] if tags else ()


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
