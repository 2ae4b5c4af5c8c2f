"""Inequalities as intervals: `x \\le -5 \\text{ or } x \\ge 5` and the union that it says, as texts.

It looks at characters only and evaluates nothing; whether two unions are equal the algebra tells.
"""

from __future__ import annotations

import re

_INEQUALITY = re.compile(r"(\\(?:leq?|geq?|neq?|lt|gt)(?![a-zA-Z])|<=|>=|[<>])")
_SIGNS = {
    spelling: sign
    for sign, spellings in {
        "<": r"< \lt",
        ">": r"> \gt",
        "<=": r"<= \le \leq",
        ">=": r">= \ge \geq",
        "≠": r"\ne \neq",
    }.items()
    for spelling in spellings.split()
}


def _intervals(text: str) -> tuple[str, str] | None:
    """`x \\le -5 \\text{ or } x \\ge 5` → x and the union of intervals that it says; None for anything else."""
    pieces, names = [], set()
    for part in re.split(r"\\cup|,", re.sub(r"\\(?:text|mbox) *+\{ *+or *+\}|\bor\b|\\lor\b", ",", text)):
        tokens = [token.strip() for token in _INEQUALITY.split(part)]
        signs = [_SIGNS[token] for token in tokens[1::2]]
        operands = tokens[::2]
        if not 2 <= len(operands) <= 3 or not all(operands):
            return None
        if len(operands) == 3 and "≠" in signs:
            return None
        place = next((k for k, operand in enumerate(operands) if re.fullmatch(r"[a-zA-Z]|\\theta", operand)), None)
        if place is None or (len(operands) == 3) is not (place == 1 and len(operands) == 3):
            return None
        names.add(operands.pop(place))
        if signs == ["≠"]:
            pieces += [rf"(-\infty,{operands[0]})", rf"({operands[0]},\infty)"]
            continue
        if len(operands) == 2:
            if signs[0][0] != signs[1][0]:
                return None
            low, high = (operands, signs) if signs[0][0] == "<" else (operands[::-1], signs[::-1])
            pieces.append(f"{'[('['=' not in high[0]]}{low[0]},{low[1]}{'])'['=' not in high[1]]}")
            continue
        upward = (signs[0][0] == ">") is (place == 0)
        closed = "=" in signs[0]
        pieces.append(
            f"{'[' if closed else '('}{operands[0]},\\infty)"
            if upward
            else f"(-\\infty,{operands[0]}{']' if closed else ')'}"
        )
    return (names.pop(), r"\cup".join(pieces)) if len(names) == 1 else None


def as_intervals(prediction: str, gold: str) -> tuple[str, str]:
    """Both texts as unions of intervals where one says inequalities, of one name, and the other says them or a set."""
    said = [_intervals(text) for text in (prediction, gold)]
    if all(said) and said[0] and said[1]:
        return (said[0][1], said[1][1]) if said[0][0] == said[1][0] else (prediction, gold)
    other = gold if said[0] else prediction
    if not any(said) or not re.match(r"(?:[a-z] *\\in *)?(?:[\[(]|\\mathbb|\\emptyset)", other):
        return prediction, gold
    sets = [
        found[1] if found else re.sub(r"^[a-z] *\\in *", "", text)
        for found, text in zip(said, (prediction, gold), strict=True)
    ]
    return sets[0], sets[1]
