"""Generated arithmetic, and the rule that keeps training and held-out problems apart. It knows no model and no file.

Which split a problem belongs to is a fact about the problem itself, a hash of its canonical form, never of a seed,
a size or an operand range: two splits can't share a problem however they are drawn.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator

from negaware.tasks.options import ArithmeticForm, ArithmeticOptions, Split
from negaware.types import Problem

SIGNS: dict[ArithmeticForm, str] = {"add": "+", "subtract": "-", "multiply": "*", "add_subtract": "+-"}
TEST_SHARE = 3
"""One problem in this many is held out."""


def split_of(canonical: str) -> Split:
    """The split that a problem of this canonical form belongs to, on every machine and in every run."""
    digest = hashlib.sha256(canonical.encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % TEST_SHARE == 0 else "train"


def canonical_form(form: ArithmeticForm, operands: tuple[int, ...]) -> str:
    """The same text for questions that are the same but for the order of what commutes: 7 + 5 and 5 + 7."""
    a, b, *rest = operands
    if form != "subtract":
        a, b = min(a, b), max(a, b)
    return ":".join([form, *map(str, (a, b, *rest))])


def arithmetic_problem(form: ArithmeticForm, operands: tuple[int, ...]) -> Problem:
    """The problem that asks for `form` of `operands`."""
    expression = str(operands[0])
    for sign, operand in zip(SIGNS[form], operands[1:], strict=True):
        expression += f" {sign} {operand}"
    return Problem(
        f"arithmetic/{expression.replace(' ', '')}", f"What is {expression}?", str(result_of(form, operands))
    )


def result_of(form: ArithmeticForm, operands: tuple[int, ...]) -> int:
    """The value of `form` of `operands`."""
    value = operands[0]
    for sign, operand in zip(SIGNS[form], operands[1:], strict=True):
        value = {"+": value + operand, "-": value - operand, "*": value * operand}[sign]
    return value


def arithmetic_problems(options: ArithmeticOptions) -> list[Problem]:
    """The split's problems, forms in turn, shuffled within each form.

    A form whose problems are used up is left out (test, or no `num_problems`) or shuffled anew (train).
    Raises ValueError for more test problems than there are: a held-out set counts no problem twice.
    """
    pools = {form: _pool(form, options) for form in options.forms}
    num_distinct = sum(len(pool) for pool in pools.values())
    wanted = options.num_problems or num_distinct
    if options.split == "test" and wanted > num_distinct:
        raise ValueError(
            f"arithmetic test was asked for num_problems={wanted}, but operands {options.low} to {options.high} "
            f"give {num_distinct}; ask for at most that many, or widen low and high"
        )
    if not num_distinct:
        raise ValueError(
            f"arithmetic {options.split} has no problem with operands {options.low} to {options.high}; "
            "widen low and high"
        )
    repeat = options.split == "train" and options.num_problems is not None
    streams = [_stream(form, pool, options, repeat) for form, pool in pools.items() if pool]
    return list(itertools.islice(_in_turn(streams), wanted))


def _pool(form: ArithmeticForm, options: ArithmeticOptions) -> list[tuple[int, ...]]:
    """Every operand tuple of the form in the split whose result is neither negative nor its own last operand.

    An echo of the question ends in that operand: where an answer's last number counts, 8 - 4 would be right by it.
    """
    values = range(options.low, options.high + 1)
    tuples = itertools.product(values, repeat=3 if form == "add_subtract" else 2)
    return [
        operands
        for operands in tuples
        if split_of(canonical_form(form, operands)) == options.split
        and result_of(form, operands) >= 0
        and result_of(form, operands) != operands[-1]
    ]


def _stream(
    form: ArithmeticForm, pool: list[tuple[int, ...]], options: ArithmeticOptions, repeat: bool
) -> Iterator[Problem]:
    """The pool in a shuffled order, once or again and again."""
    generator = random.Random(f"{options.seed}:{options.split}:{form}")
    while True:
        for operands in generator.sample(pool, len(pool)):
            yield arithmetic_problem(form, operands)
        if not repeat:
            return


def _in_turn(streams: list[Iterator[Problem]]) -> Iterator[Problem]:
    """One problem of each stream in turn, until all have ended."""
    for row in itertools.zip_longest(*streams):
        yield from (problem for problem in row if problem is not None)
