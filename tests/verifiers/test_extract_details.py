"""Where extraction begins, ends and gives up: texts in which one place more or less changes the answer."""

import pytest

from negaware.verifiers import extract
from negaware.verifiers.extract import conjoined_boxes, extract_answer


@pytest.mark.parametrize(
    ("method", "text", "answer"),
    [
        ("last_number", "So it is $50$%.", "50%"),
        ("last_number", "So it is $50$ %.", "50 %"),
        ("last_number", r"It is $\sqrt{2}$ or more", None),
        ("last_number", r"It is $\sqrt{2}$ here.", r"\sqrt{2}"),
        ("bare", "isosceles triangle", "isosceles triangle"),
        ("bare", "blue green red", None),
        ("bare", "ABC + DEF = GHIJ", "ABC + DEF = GHIJ"),
        ("bare", "HELLO + WORLDWIDE = NOTHING", None),
        ("answer_is", 'The answer is "yes".', "yes"),
        ("answer_is", "The answer is `blue`.", "blue"),
        ("answer_is", "The answer is (D), since 2 + 2 = 4.", "D"),
        ("answer_is", "The answer is D.", "D"),
        ("hashes", "#### 12 apples and 3 pears", "12"),
    ],
)
def test_what_each_method_finds(method: str, text: str, answer: str | None) -> None:
    assert extract_answer(text, method) == answer


def test_at_most_twelve_boxes_are_joined() -> None:
    boxes = ", ".join(rf"\boxed{{{number}}}" for number in range(1, 15))
    assert conjoined_boxes(boxes) == ", ".join(str(number) for number in range(3, 15))


def test_a_formula_is_closed_by_its_own_kind() -> None:
    assert list(extract._segments(r"\(a$ b$")) == [(3, "b", 7)]
    assert list(extract._segments("$a$ and $$b$$")) == [(0, "a", 3), (8, "b", 13)]
    assert list(extract._segments("$a\nb$ c$")) == [(4, "c", 8)]  # no line ends within single dollars


def test_no_answer_is_longer_than_a_box_may_be() -> None:
    sum_of_ones = "1+" * 2500 + "1"
    assert len(extract_answer(f"The answer is ${sum_of_ones}$", "answer_is") or "") <= extract.MAX_ANSWER
    assert extract_answer(rf"\boxed{{{'1' * 3990}}}", "boxed") == "1" * 3990
    assert extract_answer(rf"\boxed{{{'1' * 4010}}}", "boxed") in (None, "")
