"""Inequalities as intervals: `x \\le -5 \\text{ or } x \\ge 5` and the union that it means, as texts.

It looks at characters only and evaluates nothing; whether two unions are equal is left to the algebra.
"""

from __future__ import annotations

import re

_INEQUALITY = re.compile(r"(\\(?:leq?|geq?|neq?|lt|gt)(?![a-zA-Z])|<=|>=|[<>])")
_SIGNS = {r"\lt": "<", r"\gt": ">", r"\le": "<=", r"\leq": "<=", r"\ge": ">=", r"\geq": ">=", r"\ne": "≠", r"\neq": "≠"}
"""The sign of each LaTeX command; other signs stay as they are."""


def _intervals(text: str) -> tuple[str, str] | None:
    """`x \\le -5 \\text{ or } x \\ge 5` → x and the union of intervals that it means; None for anything else."""
    pieces, names = [], set()
    for part in re.split(r"\\cup|,", re.sub(r"\\(?:text|mbox) *+\{ *+or *+\}|\bor\b|\\lor\b", ",", text)):
        tokens = [token.strip() for token in _INEQUALITY.split(part)]
        signs = [_SIGNS.get(token, token) for token in tokens[1::2]]
        operands = tokens[::2]
        if not 2 <= len(operands) <= 3 or not all(operands):
            return None
        place = next((k for k, operand in enumerate(operands) if re.fullmatch(r"[a-zA-Z]|\\theta", operand)), None)
        if place is None or (len(operands) == 3 and (place != 1 or "≠" in signs)):
            return None
        names.add(operands.pop(place))
        if signs == ["≠"]:
            pieces += [rf"(-\infty,{operands[0]})", rf"({operands[0]},\infty)"]
            continue
        if len(operands) == 2 and signs[0][0] != signs[1][0]:
            return None
        if len(operands) == 1 and (signs[0][0] == ">") is (place == 0):
            operands, signs = [*operands, r"\infty"], [*signs, "<"]
        elif len(operands) == 1:
            operands, signs = [r"-\infty", *operands], ["<", *signs]
        elif signs[0][0] == ">":
            operands, signs = operands[::-1], signs[::-1]
        pieces.append(f"{'[' if '=' in signs[0] else '('}{','.join(operands)}{']' if '=' in signs[1] else ')'}")
    return (names.pop(), r"\cup".join(pieces)) if len(names) == 1 else None


def as_intervals(prediction: str, gold: str) -> tuple[str, str]:
    """Both texts as unions of intervals if one holds inequalities of one name, and the other such or a set."""
    first, second = _intervals(prediction), _intervals(gold)
    if first and second:
        return (first[1], second[1]) if first[0] == second[0] else (prediction, gold)
    other = gold if first else prediction
    if not (first or second) or not re.match(r"(?:[a-z] *\\in *)?(?:[\[(]|\\mathbb|\\emptyset)", other):
        return prediction, gold
    other = re.sub(r"^[a-z] *\\in *", "", other)
    return first[1] if first else other, second[1] if second else other
