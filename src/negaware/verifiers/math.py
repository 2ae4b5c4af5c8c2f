"""Grades mathematical answers: extraction, the fast exact path, then symbolic algebra in worker processes.

Every text gets a verdict with a reason, within the limits. It knows nothing of tasks or prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from negaware.types import Problem, Verdict
from negaware.verifiers.equivalence import MAX_CHARACTERS, fast_verdict
from negaware.verifiers.extract import check_methods, conjoined_boxes, extract_answer, find_answer
from negaware.verifiers.function import as_verdict
from negaware.verifiers.latex import clean
from negaware.verifiers.limits import Limits
from negaware.verifiers.numbers import parse_number
from negaware.verifiers.pool import WorkerPool
from negaware.verifiers.worker import Outcome

_MAX_BARE_GOLD = 300  # a longer gold answer is a worked solution, from which the answer is extracted
_MAX_CACHED_GOLDS = 100_000
_PART = 64  # pairs that a worker is sent in one call for the fast path


def prepare_gold(gold: str) -> str:
    """A gold answer as one value: what its boxes hold or what follows ####; a bare one stays as it is."""
    if r"\boxed" in gold or r"\fbox" in gold or "####" in gold:
        found = conjoined_boxes(gold) or extract_answer(gold, ("boxed", "hashes"))
        if found:
            return found
    if len(gold) > _MAX_BARE_GOLD:
        return extract_answer(gold) or gold.strip()
    return gold.strip()


def is_plural(gold: str) -> bool:
    """Whether a gold answer lists several values."""
    return parse_number(gold) is None and any(mark in gold for mark in (",", ";", "and", "or", r"\pm", r"\{"))


def _symbolic(prediction: str, gold: str) -> bool:
    # Imported here: only the workers may import sympy, never the trainer's process.
    from negaware.verifiers.symbolic import symbolic_verdict

    return symbolic_verdict(prediction, gold)


def _parseable(gold: str) -> bool:
    from negaware.verifiers.symbolic import is_parseable

    return is_parseable(gold)


def _fast_verdicts(methods: Sequence[str], texts: Sequence[str], golds: Sequence[str]) -> list[Verdict | None]:
    """The verdicts that need no algebra, None for the others. Runs in a worker."""
    verifier = MathVerifier(methods)
    found = [verifier._fast(text, gold) for text, gold in zip(texts, golds, strict=True)]
    return [verdict if isinstance(verdict, Verdict) else None for verdict in found]


def _load_symbolic() -> None:
    import negaware.verifiers.symbolic  # noqa: F401


def _has_value(gold: str, outcome: Outcome) -> bool | None:
    """What the outcome of `_parseable` says of a gold answer; None after a timeout."""
    return None if outcome.status == "timeout" else outcome.value is True and bool(clean(gold))


class MathVerifier:
    """Grades texts against gold answers; `extract` says where an answer may stand ("auto": anywhere).

    Raises ValueError for an unknown extraction method.
    """

    def __init__(self, extract: Sequence[str] | Literal["auto"] = "auto", limits: Limits | None = None) -> None:
        self.methods = check_methods(extract)
        self._pool = WorkerPool(limits, prepare=_load_symbolic)
        self._golds: dict[str, tuple[str, bool]] = {}

    def grade(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """One verdict for each text, in order; `problems[i].answer` is the gold answer to `texts[i]`."""
        return self.grade_pairs(texts, [problem.answer for problem in problems])

    def grade_pairs(self, texts: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """One verdict for each pair of a text and a gold answer, in order."""
        verdicts: list[Verdict | None] = []
        waiting: dict[tuple[str, str], list[int]] = {}
        for index, (text, gold) in enumerate(zip(texts, golds, strict=True)):
            verdict = self._fast(text, gold)
            if isinstance(verdict, tuple):
                waiting.setdefault(verdict, []).append(index)
                verdicts.append(None)
            else:
                verdicts.append(verdict)
        for pair, outcome in zip(waiting, self._pool.run(_symbolic, list(waiting)), strict=True):
            for index in waiting[pair]:
                verdicts[index] = as_verdict(outcome, pair[0])
        return [verdict for verdict in verdicts if verdict is not None]

    def grade_in_workers(self, texts: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """As `grade_pairs`, but the workers do the fast path too, so that this process is free for other work."""
        if len(texts) <= _PART:  # done here before workers would have started
            return self.grade_pairs(texts, golds)
        parts = [slice(start, start + _PART) for start in range(0, len(texts), _PART)]
        outcomes = self._pool.run(_fast_verdicts, [(self.methods, texts[part], golds[part]) for part in parts])
        verdicts: list[Verdict | None] = []
        for part, outcome in zip(parts, outcomes, strict=True):
            verdicts += outcome.value if outcome.status == "done" else [None] * len(texts[part])
        waiting = [index for index, verdict in enumerate(verdicts) if verdict is None]
        slow = iter(self.grade_pairs([texts[index] for index in waiting], [golds[index] for index in waiting]))
        return [next(slow) if verdict is None else verdict for verdict in verdicts]

    def _fast(self, text: str, gold: str) -> Verdict | tuple[str, str]:
        """A verdict, or the pair that only symbolic algebra can judge."""
        try:
            gold_value, plural = self._gold(gold)
            extracted = find_answer(text, self.methods)
            if plural and "boxed" in self.methods:
                # Several values may stand in neighbouring boxes; a single value never takes two of them.
                extracted = conjoined_boxes(text) or extracted
            if extracted is None:
                return Verdict(False, "no_answer")
            same = fast_verdict(extracted, gold_value)
        except Exception as error:  # no text may stop a run
            return Verdict(False, "error", f"{type(error).__name__}: {error}"[:MAX_CHARACTERS])
        if same is None:
            return extracted, gold_value
        return Verdict(same, "correct" if same else "wrong", extracted[:MAX_CHARACTERS])

    def _gold(self, gold: str) -> tuple[str, bool]:
        if gold in self._golds:
            return self._golds[gold]
        value = prepare_gold(gold)
        found = value, is_plural(value)
        if len(self._golds) < _MAX_CACHED_GOLDS:
            self._golds[gold] = found
        return found

    def parseable(self, golds: Sequence[str]) -> list[bool | None]:
        """Whether each gold answer has a mathematical value; without one it is only compared as a text.

        None: reading it took too long, so it is unknown.
        """
        values = [prepare_gold(gold) for gold in golds]
        outcomes = iter(self._pool.run(_parseable, [(value,) for value in values if parse_number(value) is None]))
        return [parse_number(value) is not None or _has_value(value, next(outcomes)) for value in values]

    def close(self) -> None:
        """Ends the worker processes."""
        self._pool.close()

    def __enter__(self) -> MathVerifier:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
