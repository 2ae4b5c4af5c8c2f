"""Generated arithmetic, and the rule that separates training problems from held-out ones.

A hash of a problem's canonical form decides its split. Seeds, sizes and operand ranges don't, so no problem can be in
both splits.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator

from negaware.tasks.options import ArithmeticForm, ArithmeticOptions, Split
from negaware.types import Problem

SIGNS: dict[ArithmeticForm, str] = {"add": "+", "subtract": "-", "multiply": "*", "add_subtract": "+-"}
HELD_OUT_EVERY = 3
"""One problem in this many is held out for test."""


def split_of(canonical: str) -> Split:
    """The split of a problem with this canonical form: the same on every machine and in every run."""
    digest = hashlib.sha256(canonical.encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % HELD_OUT_EVERY == 0 else "train"


def canonical_form(form: ArithmeticForm, operands: tuple[int, ...]) -> str:
    """One text for questions that differ only in the order of operands that commute: 7 + 5 and 5 + 7."""
    a, b, *rest = operands
    if form != "subtract":
        a, b = min(a, b), max(a, b)
    return ":".join([form, *map(str, (a, b, *rest))])


def arithmetic_problem(form: ArithmeticForm, operands: tuple[int, ...]) -> Problem:
    """The problem of this form with these operands."""
    expression = str(operands[0])
    for sign, operand in zip(SIGNS[form], operands[1:], strict=True):
        expression += f" {sign} {operand}"
    name = f"arithmetic/{expression.replace(' ', '')}"
    return Problem(name, f"What is {expression}?", str(result_of(form, operands)))


def result_of(form: ArithmeticForm, operands: tuple[int, ...]) -> int:
    """The right answer."""
    value = operands[0]
    for sign, operand in zip(SIGNS[form], operands[1:], strict=True):
        value = {"+": value + operand, "-": value - operand, "*": value * operand}[sign]
    return value


def arithmetic_problems(options: ArithmeticOptions) -> list[Problem]:
    """The split's problems, forms in turn, shuffled within each form.

    A form whose problems are used up is left out (test, or no `num_problems`) or shuffled anew (train). ValueError for
    more test problems than there are, for a held-out problem must not count twice.
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
    in_turn = (problem for row in itertools.zip_longest(*streams) for problem in row if problem is not None)
    return list(itertools.islice(in_turn, wanted))


def _pool(form: ArithmeticForm, options: ArithmeticOptions) -> list[tuple[int, ...]]:
    """The split's operands of the form whose result is neither negative nor equal to the last operand.

    "8 - 4" ends in its own result: if an answer's last number counts, an echo of the question would be right.
    """
    values = range(options.low, options.high + 1)
    return [
        operands
        for operands in itertools.product(values, repeat=3 if form == "add_subtract" else 2)
        if split_of(canonical_form(form, operands)) == options.split and 0 <= result_of(form, operands) != operands[-1]
    ]


def _stream(
    form: ArithmeticForm, pool: list[tuple[int, ...]], options: ArithmeticOptions, repeat: bool
) -> Iterator[Problem]:
    """The problems of the pool in a random order, once or repeatedly."""
    generator = random.Random(f"{options.seed}:{options.split}:{form}")
    while True:
        for operands in generator.sample(pool, len(pool)):
            yield arithmetic_problem(form, operands)
        if not repeat:
            return
