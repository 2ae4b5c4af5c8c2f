"""What can be set about the objective, made from the signatures of the losses; and the loss of one's own.

No option's name, default or bound stands here.
"""

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
from negaware.objectives.own import own_objective
from negaware.own_code import OwnFunction, Purpose, find_function
from negaware.validation import Options, named, plain_switch

LOSS = Purpose("loss", "a loss", "my_losses:my_loss")

REDUCTION = Field(
    default=None,
    description="How the loss of its tokens is added up: token_mean, sequence_mean or constant; by default as its "
    "paper does. A loss of whole groups (real, infonca) has group_mean alone.",
)


class ChosenObjective(Options):
    """An objective with its options."""

    # Its fields are made of signatures, whose words are their descriptions.
    model_config = ConfigDict(validate_default=True, use_attribute_docstrings=False)

    entry: ClassVar[Objective]
    """The objective itself."""
    if TYPE_CHECKING:  # in each model in its own place, so that they are listed in a good order
        reduction: Reduction = "token_mean"

    @property
    def options(self) -> dict[str, Any]:
        """The keyword options of its loss."""
        return self.model_dump(exclude={"name", "loss", "reduction"})

    @property
    def reads_rewards(self) -> bool:
        """Whether its loss is another where answers earn something else than their verdicts."""
        return reads_rewards(self.entry, self.options)

    @property
    def teaching_rates(self) -> frozenset[float]:
        """0.0 if it learns something from groups that are all wrong, 1.0 if from those that are all right."""
        return teaching_rates(self.entry, self.options)

    @model_validator(mode="after")
    def _check(self) -> Self:
        """The reduction is chosen, and what the loss itself refuses is refused."""
        reduction = self.entry.reduction_under(self.options, self.reduction)
        object.__setattr__(self, "reduction", reduction)  # frozen, but not yet given to anyone
        try:
            try_out(self.entry, self.options)
        except ValueError as error:
            raise ValueError(str(error).rstrip(".")) from error
        return self


def _model(entry: Objective, names: dict[str, Any], keywords: Mapping[str, Keyword], doc: str) -> type[ChosenObjective]:
    """The options' model: the fields `names`, the reduction, and one for each keyword."""
    fields = {name: _field(keyword) for name, keyword in keywords.items()}
    made: type[ChosenObjective] = create_model(
        f"{entry.name} options",
        __base__=ChosenObjective,
        __doc__=doc,
        **{**names, "reduction": (Reduction | None, REDUCTION), **fields},
    )
    made.entry = entry
    return made


def _field(keyword: Keyword) -> tuple[Any, Any]:
    option = keyword.option
    hint = Annotated[keyword.type, BeforeValidator(plain_switch)] if bool in _types(keyword.type) else keyword.type
    default = ... if keyword.default is REQUIRED else keyword.default
    return hint, Field(default=default, gt=option.above, ge=option.at_least, description=option.help)


def _types(hint: Any) -> set[Any]:
    """The types that a hint is made of; of a Literal that it is one."""
    if get_origin(hint) in (Union, UnionType):
        return set().union(*(_types(inner) for inner in get_args(hint)))
    return {get_origin(hint) or hint}


def _of_name(entry: Objective) -> type[ChosenObjective]:
    doc = (inspect.getdoc(entry.function) or "").partition("\n")[0]
    return _model(entry, {"name": (Literal[entry.name], entry.name)}, entry.keywords, doc)


OPTIONS: dict[str, type[ChosenObjective]] = {name: _of_name(entry) for name, entry in OBJECTIVES.items()}
"""The options' model of each of OBJECTIVES."""


if TYPE_CHECKING:
    ObjectiveOptions = ChosenObjective
else:
    ObjectiveOptions = Annotated[
        Union[tuple(OPTIONS.values())],  # noqa: UP007
        Field(discriminator="name"),
        BeforeValidator(lambda value: named(written_out(value), default="nft")),
    ]


# --- a loss of one's own ---


def written_out(objective: Any) -> Any:
    """`{name: nft}` of `nft`, and `{loss: module:function}` of `module:function`."""
    return {"loss": objective} if isinstance(objective, str) and ":" in objective else named(objective)


def own_options(name: object, folders: Sequence[Path]) -> type[ChosenObjective]:
    """The options' model of the loss `module:function` in the first of the folders that has it.

    ValueError where there is none, or where its signature isn't that of a loss.
    """
    if not isinstance(name, str):
        raise ValueError(f"loss is {name!r}; write module:function, such as {LOSS.example}")
    return _own_model(find_function(name, folders, LOSS))


@cache
def _own_model(own: OwnFunction) -> type[ChosenObjective]:
    name, function = f"{own.module}:{own.function}", own.load()
    entry = own_objective(name, function)
    loss = (Literal[name], Field(description="Your own loss, module:function."))
    return _model(entry, {"loss": loss}, _keywords(name, function), "A loss of your own.")


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
    except Exception as error:  # whatever evaluating a user's annotation may raise
        raise ValueError(
            f"loss {name!r}: the type of an option means nothing ({type(error).__name__}: {error}); write a number, a "
            "text, a boolean or a Literal"
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
