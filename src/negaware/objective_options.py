"""The options of the objectives, made from the signatures of their losses; and those of a user's loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import BeforeValidator, ConfigDict, Field, create_model, model_validator

from negaware.objectives import OBJECTIVES, Objective
from negaware.objectives.contract import REQUIRED, Keyword, keywords_of, reads_rewards, teaching_rates, try_out
from negaware.objectives.ops import Reduction
from negaware.objectives.user_loss import user_objective
from negaware.user_code import Purpose, UserFunction, find_function
from negaware.validation import Options, named, plain_switch

LOSS = Purpose("loss", "a loss", "my_losses:my_loss")

REDUCTION = Field(
    default=None,
    description="How the loss of its tokens is added up: token_mean, sequence_mean or constant; by default as in its "
    "paper. A loss of whole groups (real, infonca) has only group_mean.",
)


class ChosenObjective(Options):
    """An objective with its options."""

    # The fields come from signatures, which have their descriptions.
    model_config = ConfigDict(validate_default=True, use_attribute_docstrings=False)

    entry: ClassVar[Objective]
    if TYPE_CHECKING:  # `_model` adds it, after the name
        reduction: Reduction = "token_mean"

    @property
    def options(self) -> dict[str, Any]:
        """The keyword options of its loss."""
        return self.model_dump(exclude={"name", "loss", "reduction"})

    @property
    def reads_rewards(self) -> bool:
        """Whether its loss changes if answers have rewards other than their verdicts."""
        return reads_rewards(self.entry, self.options)

    @property
    def teaching_rates(self) -> frozenset[float]:
        """Holds 0.0 if it learns from groups that are all wrong, 1.0 if from groups that are all right."""
        return teaching_rates(self.entry, self.options)

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Chooses the reduction. ValueError for options that the loss refuses."""
        reduction = self.entry.reduction_under(self.options, self.reduction)
        object.__setattr__(self, "reduction", reduction)  # frozen, but not yet given to anyone
        try:
            try_out(self.entry, self.options)
        except ValueError as error:
            raise ValueError(str(error).rstrip(".")) from error
        return self


def _model(entry: Objective, names: dict[str, Any], keywords: Mapping[str, Keyword], doc: str) -> type[ChosenObjective]:
    """The options' model: the fields `names`, the reduction, and a field for each keyword."""
    fields = names | {"reduction": (Reduction | None, REDUCTION)}
    fields |= {name: _field(keyword) for name, keyword in keywords.items()}
    made: type[ChosenObjective] = create_model(f"{entry.name} options", __base__=ChosenObjective, __doc__=doc, **fields)
    made.entry = entry
    return made


def _field(keyword: Keyword) -> tuple[Any, Any]:
    option = keyword.option
    hint = Annotated[keyword.type, BeforeValidator(plain_switch)] if bool in _types(keyword.type) else keyword.type
    default = ... if keyword.default is REQUIRED else keyword.default
    return hint, Field(default=default, gt=option.above, ge=option.at_least, description=option.help)


def _types(hint: Any) -> set[Any]:
    """The types in a union; Literal for a Literal."""
    if get_origin(hint) in (Union, UnionType):
        return set().union(*(_types(inner) for inner in get_args(hint)))
    return {get_origin(hint) or hint}


OPTIONS: dict[str, type[ChosenObjective]] = {
    name: _model(
        entry,
        {"name": (Literal[name], name)},
        entry.keywords,
        (inspect.getdoc(entry.function) or "").partition("\n")[0],
    )
    for name, entry in OBJECTIVES.items()
}
"""The options' model of each of OBJECTIVES."""


if TYPE_CHECKING:
    ObjectiveOptions = ChosenObjective
else:
    ObjectiveOptions = Annotated[
        Union[tuple(OPTIONS.values())],  # noqa: UP007
        Field(discriminator="name"),
        BeforeValidator(lambda value: named(written_out(value), default="nft")),
    ]


# --- a user's loss ---


def written_out(objective: Any) -> Any:
    """`{name: nft}` for `nft`, and `{loss: module:function}` for `module:function`."""
    return {"loss": objective} if isinstance(objective, str) and ":" in objective else named(objective)


def user_loss_options(name: object, folders: Sequence[Path]) -> type[ChosenObjective]:
    """The options' model of the loss `module:function` in the first of the folders that has it.

    ValueError if there is none, or if its signature isn't that of a loss.
    """
    if not isinstance(name, str):
        raise ValueError(f"loss is {name!r}; write module:function, such as {LOSS.example}")
    return _user_loss_model(find_function(name, folders, LOSS))


@cache
def _user_loss_model(loss: UserFunction) -> type[ChosenObjective]:
    name, function = f"{loss.module}:{loss.function}", loss.load()
    entry = user_objective(name, function)
    field = (Literal[name], Field(description="Your own loss, module:function."))
    return _model(entry, {"loss": field}, _keywords(name, function), "A loss of your own.")


def _keywords(name: str, function: Callable[..., Any]) -> dict[str, Keyword]:
    """The options of a loss. ValueError if it takes anything but the answers and options by keyword."""
    parameters = list(inspect.signature(function).parameters.values())
    by_place = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    others = [each for each in parameters if each not in by_place and each.kind is not each.KEYWORD_ONLY]
    if len(by_place) != 1 or others:
        raise ValueError(
            f"loss {name!r} takes {', '.join(map(str, parameters)) or 'nothing'}; it should take the answers, then its "
            "options by keyword: def my_loss(answers, *, temperature=1.0)"
        )
    try:
        keywords = keywords_of(function)
    except Exception as error:  # a user's annotation may raise anything
        raise ValueError(
            f"loss {name!r}: the type of an option can't be evaluated ({type(error).__name__}: {error}); write a "
            "number, a text, a boolean or a Literal"
        ) from error
    for option, keyword in keywords.items():
        if hasattr(ChosenObjective, option) or option.startswith("_") or option in ("name", "loss", "reduction"):
            raise ValueError(f"loss {name!r}: an option can't be called {option!r}; choose another name")
        if not _types(keyword.type) <= {int, float, str, bool, NoneType, Literal}:
            raise ValueError(
                f"loss {name!r}: the option {option} needs a type that a config can hold, a number, a text, a boolean, "
                f"a Literal or one of them and None: {option}: float = 1.0"
            )
    return keywords
