"""Twice the text, twice the work: extraction and comparison are linear in what a degenerate model writes.

Work is counted, not timed: steps of every regular expression's matching, lines of Python, characters copied.
"""

import re
import sys
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from step_counter import StepCounter

from negaware.verifiers import equivalence, extract, hedges, latex, math, numbers

MODULES = [extract, hedges, equivalence, latex, numbers, math]
PATTERNS = [
    (f"{module.__name__.rpartition('.')[2]}.{name}", value)
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, re.Pattern)
]


class Work:
    """Steps taken by the verifier's modules while the block runs."""

    def __init__(self) -> None:
        self.steps = 0

    def __enter__(self) -> "Work":
        self._patterns: list[tuple[ModuleType, str, re.Pattern[str]]] = []
        for module in MODULES:
            for name, value in list(vars(module).items()):
                if isinstance(value, re.Pattern):
                    self._patterns.append((module, name, value))
                    setattr(module, name, _Counted(value, self))
        files = {module.__file__ for module in MODULES}

        def line(frame: FrameType, event: str, _: Any) -> Any:
            self.steps += event == "line"
            return line

        self._before = sys.gettrace()
        sys.settrace(lambda frame, event, _: line if frame.f_code.co_filename in files else None)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(self._before)
        for module, name, value in self._patterns:
            setattr(module, name, value)


class _Counted:
    """A compiled pattern whose every use adds to the work what a backtracking matcher needs for it."""

    def __init__(self, pattern: re.Pattern[str], work: Work) -> None:
        self._pattern, self._work = pattern, work

    def _count(self, use: Callable[[StepCounter], object]) -> None:
        tracer = sys.gettrace()
        sys.settrace(None)
        counter = StepCounter(self._pattern)
        use(counter)
        self._work.steps += counter.steps
        sys.settrace(tracer)

    def match(self, text: str, start: int = 0) -> Any:
        self._count(lambda counter: next(counter.ends(text, start), None))
        return self._pattern.match(text, start)

    def fullmatch(self, text: str) -> Any:
        self._count(lambda counter: counter.full(text))
        return self._pattern.fullmatch(text)

    def search(self, text: str) -> Any:
        self._count(lambda counter: counter.spans(text))  # at least what the first match takes
        return self._pattern.search(text)

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        self._count(lambda counter: counter.spans(text))
        return self._pattern.finditer(text)

    def findall(self, text: str) -> list[Any]:
        self._count(lambda counter: counter.spans(text))
        return self._pattern.findall(text)

    def split(self, text: str) -> list[Any]:
        self._count(lambda counter: counter.spans(text))
        return self._pattern.split(text)

    def sub(self, replacement: Any, text: str, count: int = 0) -> str:
        self._count(lambda counter: counter.spans(text))
        return self._pattern.sub(replacement, text, count)


def steps_of(text: str) -> int:
    """Work for one text: found by each method, compared with a number."""
    with Work() as work:
        extract.extract_answer(text)
        extract.extract_answer(text, ["last_number"])
        extract.conjoined_boxes(text)
        equivalence.fast_verdict(text, "7")
    return work.steps


_COMMANDS = [r"\frac", r"\sqrt", r"\boxed{", r"\boxed ", r"\text{", r"\left", r"\{", r"\pm", r"\begin{array}", r"\\"]
_WORDS = ["answer", "answer is ", "####", "and ", " or ", "<think>", "<answer>", "not ", "$1", "1,", "{,}", "^{"]
_PIECES = st.sampled_from([*"01ab+-*/^_(){}[],.;:!=<>|&%$# \n\\'\"√٣个。", *_COMMANDS, *_WORDS])


@settings(max_examples=3, deadline=None)
@given(
    st.lists(_PIECES, max_size=2).map("".join),
    st.lists(_PIECES, min_size=1, max_size=3).map("".join),
    st.lists(_PIECES, max_size=2).map("".join),
)
@example("", "\n", "")
@example("1", "a", "!")
@example("", "1", "!")
@example("", "0", "0")
@example("", "x ", "or")
@example("$1", " ", "!")
@example("^", " ", "x")
@example("", "{ ", "")
def test_twice_the_text_is_at_most_twice_the_work(prefix: str, unit: str, suffix: str) -> None:
    # What a stretch costs doesn't grow with what stood before it. All three are beyond 120 characters, where a text
    # stops being taken for a plain number; the constant allows for the other bounds, of which each is crossed once.
    length = 30
    work = [steps_of(prefix + unit * (count * length // len(unit)) + suffix) for count in (4, 6, 10)]
    assert work[2] - work[1] <= 2.6 * max(work[1] - work[0], 0) + 250 * length


@pytest.mark.parametrize(
    ("text", "per_character"),
    [("\n" * 1000, 40), ("1" + "a" * 598 + "!", 240), ("1 " * 200, 240), ("1," * 200, 240), ("- " * 200, 240)],
    ids=lambda value: repr(value)[:12],
)
def test_what_held_a_trainer_for_seconds_costs_a_few_steps_a_character(text: str, per_character: int) -> None:
    assert steps_of(text) <= per_character * len(text)


@pytest.mark.parametrize("reads", [hedges.hedged_before, hedges.denied])
def test_a_text_without_telling_words_is_searched_for_none(reads: Callable[[str], bool]) -> None:
    with Work() as work:
        assert not reads("Tom has 12 apples and eats two of those he has, which makes ")
    assert work.steps <= 1000


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PATTERNS), st.lists(_PIECES, max_size=12).map("".join))
def test_the_counter_matches_what_re_matches(named: tuple[str, re.Pattern[str]], text: str) -> None:
    _, pattern = named
    counter = StepCounter(pattern)
    assert counter.spans(text) == [match.span() for match in pattern.finditer(text) if match[0]]
    assert counter.full(text) is (pattern.fullmatch(text) is not None)
    assert counter.steps > 0
