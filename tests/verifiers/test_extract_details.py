"""Where extraction begins, ends and gives up: texts in which one place more or less changes the answer."""

import pytest

from negaware.verifiers import extract
from negaware.verifiers.equivalence import MAX_CHARACTERS, fast_verdict
from negaware.verifiers.extract import conjoined_boxes, extract_answer
from negaware.verifiers.hedges import continued


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
        ("answer_is", "The answer is $5$ (as 2 + 3).", "5"),
        ("boxed", r"\boxed{3}. Corrected: \fbox{7}", "7"),
        ("boxed", r"\fbox{7} it is", "7"),
        ("boxed", r"\boxed{\text{2 plus 3, so the answer is 5}}", "5"),
        ("answer_is", "<answer>C</answer>", "C"),
        ("hashes", "<answer>C</answer>", None),
        ("hashes", "#### 12 apples and 3 pears", "12"),
    ],
)
def test_what_each_method_finds(method: str, text: str, answer: str | None) -> None:
    assert extract_answer(text, method) == answer


def test_at_most_twelve_boxes_are_joined() -> None:
    boxes = ", ".join(rf"\boxed{{{number}}}" for number in range(1, 15))
    assert conjoined_boxes(boxes) == ", ".join(str(number) for number in range(3, 15))


@pytest.mark.parametrize(("length", "joined"), [(39, "3, 5"), (40, "3, 5"), (41, None)])
def test_boxes_are_joined_by_a_short_remark_that_ends_in_and(length: int, joined: str | None) -> None:
    remark = " " + "y" * (length - 6) + " and "
    assert len(remark) == length
    assert conjoined_boxes(rf"\boxed{{3}}{remark}\boxed{{5}}") == joined


def test_a_formula_is_closed_by_its_own_kind() -> None:
    assert list(extract._formulas(r"\(a$ b$")) == [("b", 3, 7)]
    assert list(extract._formulas("$a$ and $$b$$")) == [("a", 0, 3), ("b", 8, 13)]
    assert list(extract._formulas("$a$ b $c$")) == [("a", 0, 3), ("c", 6, 9)]
    assert list(extract._formulas("$a\nb$ c$")) == [("c", 4, 8)]  # no line ends within single dollars


def test_no_answer_is_longer_than_a_box_may_be() -> None:
    sum_of_ones = "1+" * 2500 + "1"
    assert len(extract_answer(f"The answer is ${sum_of_ones}$", "answer_is") or "") <= extract.MAX_ANSWER
    assert extract_answer(rf"\boxed{{{'1' * 3990}}}", "boxed") == "1" * 3990
    assert extract_answer(rf"\boxed{{{'1' * 4010}}}", "boxed") in (None, "")


@pytest.mark.parametrize(
    ("prediction", "gold", "same"),
    [
        ("4210_{5}", "4210_{5}", True),
        ("4210_5", "4210_{5}", True),
        ("4210_{7}", "4210_{5}", False),
        ("4211_{5}", "4210_{5}", False),
        ("4210", "4210_{5}", False),
        ("4210_{5}", "4210", False),
    ],
)
def test_numerals_of_a_base_need_no_algebra(prediction: str, gold: str, same: bool) -> None:
    assert fast_verdict(prediction, gold) is same


@pytest.mark.parametrize(
    ("prediction", "gold", "verdict"),
    [
        ("7:05 PM", "19:05", True),
        ("7:05 am", "7:05", True),
        ("12:30 AM", "0:30", True),
        ("12:30 p.m.", "12:30", True),
        ("7:05:09 pm", "19:05:09", True),
        ("7:05:09 pm", "19:05:08", None),  # a ratio, for all that is known here
        ("7:05 AM", "19:05", None),
        ("7:06 PM", "19:05", None),
        ("8:05 PM", "19:05", None),
        ("3:4", "3:4", True),
        ("6:8", "3:4", None),
        ("(B) 13", "B", True),
        ("(B) 13", "13", True),
        ("B", "(B) 13", True),
        ("(B) 13", "C", None),
        ("(B) 13", "14", None),
        ("silent", "listen", False),
        ("abcd", "abdc", False),
        ("abc", "acb", None),  # three letters may be a product
        ("1,5", "1.5", True),
        ("1.25", "1,25", True),
        ("1.5", "1,5", None),  # the roots 1 and 5
        ("x > 5", "5", False),
        ("3 + 4", "7", False),
    ],
)
def test_what_is_settled_without_algebra(prediction: str, gold: str, verdict: bool | None) -> None:
    assert fast_verdict(prediction, gold) is verdict


def test_a_text_of_the_longest_length_is_still_read() -> None:
    gold = "x + " * 499 + "x+xy"
    assert len(gold) == MAX_CHARACTERS
    assert fast_verdict(gold.replace(" ", ""), gold) is True
    assert fast_verdict(gold.replace(" ", ""), f" {gold}") is False  # beyond it only the same text is the same
    assert fast_verdict(f"{gold}  ", f" {gold}") is True


def test_a_value_is_continued_only_right_behind_it() -> None:
    assert continued(" + 3")
    assert not continued(" apples + 3")
