"""Grading: negaware's verifier and math-verify called directly, on the same texts, one process each on one core."""

from __future__ import annotations

import os
import time
from typing import Any

from channel import Channel, Command, Measurement

NUM_NUMERIC, NUM_LATEX = 4000, 120
_FORMS = (  # (what the model writes, the gold answer, whether they are equal)
    (r"\frac{{{a}}}{{{b}}}", r"{a}/{b}", True),
    (r"\frac{{{a}}}{{{b}}}", r"\frac{{{b}}}{{{a}}}", False),
    (r"{a}\sqrt{{{b}}}", r"\sqrt{{{b}}} \cdot {a}", True),
    (r"x^2 + {a}x + {b}", r"{b} + {a}x + x^2", True),
    (r"({a}, {b})", r"\left({a}, {b}\right)", True),
    (r"\frac{{\pi}}{{{b}}}", r"\frac{{\pi}}{{{a}}}", False),
)


def pairs(kind: str) -> list[tuple[str, str]]:
    """(answer text, gold answer), every text in words as a model writes them and with its answer in a box."""
    if kind == "numeric":
        values = [(a, a if a % 3 else a + 1) for a in range(NUM_NUMERIC)]
        return [(f"So the sum is {a}. The answer is \\boxed{{{a}}}.", str(gold)) for a, gold in values]
    found = []
    for index in range(NUM_LATEX):
        written, gold, _ = _FORMS[index % len(_FORMS)]
        a, b = 2 + index // len(_FORMS), 41 + index
        text = f"We simplify, and the answer is $\\boxed{{{written.format(a=a, b=b)}}}$."
        found.append((text, gold.format(a=a, b=b)))
    return found


def grade_ours(verifier: Any, graded: list[tuple[str, str]]) -> int:
    """How many negaware calls right."""
    texts, golds = [text for text, _ in graded], [gold for _, gold in graded]
    return sum(verdict.correct for verdict in verifier.grade_pairs(texts, golds))


def grade_math_verify(graded: list[tuple[str, str]]) -> int:
    """How many math-verify calls right, as its README calls it."""
    from math_verify import parse, verify

    return sum(bool(verify(parse(f"${gold}$"), parse(text))) for text, gold in graded)


def serve(channel: Channel, work: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Answers `{"who": "ours" | "math_verify", "kind": "numeric" | "latex"}`."""
    import math_verify  # noqa: F401  so that no measurement imports it

    from negaware.verifiers.math import MathVerifier

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core; its worker processes inherit it

    with MathVerifier() as verifier:

        def answer(command: Command, most: int | None = None) -> Measurement:
            graded = pairs(command["kind"])[:most]
            start = time.perf_counter()
            right = grade_ours(verifier, graded) if command["who"] == "ours" else grade_math_verify(graded)
            seconds = time.perf_counter() - start
            return {"per_second": len(graded) / seconds, "right": right, "answers": len(graded), "seconds": seconds}

        for kind in ("numeric", "latex"):
            for who in ("ours", "math_verify"):
                answer({"who": who, "kind": kind}, NUM_LATEX)
        channel.answer_all({"versions": {"math-verify": _version()}}, answer)


def _version() -> str:
    from importlib.metadata import version

    return version("math-verify")
