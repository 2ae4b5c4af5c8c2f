"""The lengths at which extraction stops reading, and texts in which one part of a rule decides."""

from collections.abc import Callable

import pytest

from negaware.verifiers.equivalence import fast_verdict, text_form
from negaware.verifiers.extract import extract_answer
from negaware.verifiers.hedges import (
    asks,
    contrasted,
    denied,
    either,
    hedged_after,
    hedged_before,
    one_of_several,
    taken_back,
    unfinished,
)


@pytest.mark.parametrize(
    ("method", "text", "answer"),
    [
        ("boxed", r"\boxed{5}" + r" \boxed." * 199, "5"),
        ("boxed", r"\boxed{5}" + r" \boxed." * 200, None),
        ("bare", "isosceles triangle.", "isosceles triangle."),
        ("bare", "5 large boxes.", "5 large boxes."),
        ("bare", "$blue$", "$blue$"),
        ("bare", "$blue$.", "$blue$."),
        ("bare", r"\(blue\)", r"\(blue\)"),
        ("bare", "1+" * 299 + "11", "1+" * 299 + "11"),
        ("bare", "1+" * 299 + "111", None),
        ("boxed", r"So \boxed 5.", "5"),
        ("last_number", "It is 5 in a million years.", "5"),
        ("last_number", "It is $5$ where $blue$ is a colour.", "5"),
        ("answer_is", "The answer is $x+1$ for $5 each.", "x+1"),
        ("last_number", "It is 5. Perhaps.", None),
        ("last_number", "It is 5. Done.", "5"),
        ("last_number", r"Then a\cdot\frac{1}{2}=5", "5"),
        ("last_number", r"It is \frac12.", r"\frac12"),
        ("last_number", r"It is \frac12 here.", r"\frac12"),
        ("last_number", "half of" + " " * 53 + "10", None),
        ("last_number", "half of" + " " * 54 + "10", "10"),
        ("answer_is", "The answer is $20 each, so $40 in all.", "20"),
        ("answer_is", "The answer is $20 million for 3 firms.", "20 million"),
        ("answer_is", "The answer is $5$" + " " * 99 + "+ 3", "$5$" + " " * 99 + "+ 3"),
        ("answer_is", r"The answer is $50$\%.", r"50\%"),
        ("answer_is", "The answer is (B), since vitamin C helps.", "B"),
        ("answer_is", "The answer is **A**, B also.", "A**, B also"),
        ("answer_is", "The answer is **A**, as the others are odd.", "A"),
        ("answer_is", "The answer is B or C.", "B or C"),
        ("answer_is", "The answer is 12. Or maybe 14.", "12 or"),
        ("answer_is", "The answer is 4 times the sum of 5 apples.", "4 times the sum of 5 apples"),
        ("answer_is", "The answer is 4 + 3 = 7 apples here.", "7"),
        ("answer_is", "The answer is .5 kilograms of the 3 bags.", ".5"),
        ("answer_is", "The answer is 12.) as 3 is odd", "12"),
        ("last_number", "It is at least 5 apples, as far as I can see, and that is what we were asked for.", None),
        ("last_number", "It is $x$.", "x"),
        ("boxed", r"\boxed{3} or \boxed{5}", "3 or 5"),
        ("boxed", r"\boxed{3} / \boxed{5}", "3 or 5"),
        ("boxed", r"\boxed{3}, sorry", None),
        ("boxed", r"\boxed{3} is wrong", None),
        ("boxed", "not" + " " * 77 + r"\boxed{5}", None),
        ("boxed", "not" + " " * 78 + r"\boxed{5}", "5"),
        ("answer_is", "deny" + " " * 62 + "the answer is 5", None),
        ("answer_is", "deny" + " " * 63 + "the answer is 5", "5"),
        ("last_number", "It is 56, not 54.", "56"),
        ("last_number", "In a long text we find that it is 56, not 54.", "56"),
        ("last_number", "It is 56, not 54 as we were told.", None),
        ("last_number", "3, 4, 5", None),
        ("answer_is", "<answer>It is not 3. The answer is 7.</answer>", "7"),
        ("answer_is", "The answer is B, which is wrong.", "B, which is wrong"),
        ("answer_is", "The answer is (D).", "D"),
        ("hashes", "#### 3\nNo, #### 5", "5"),
    ],
)
def test_what_decides(method: str, text: str, answer: str | None) -> None:
    assert extract_answer(text, method) == answer


@pytest.mark.parametrize(
    ("reads", "head", "tail", "longest"),
    [
        (hedged_before, "half of", "", 60),
        (unfinished, "3+", "", 40),
        (unfinished, "2x =", "", 40),
        (hedged_after, "", "isn't", 80),
        (asks, "", "?", 201),
        (denied, "deny", "", 80),
        (denied, "not", "", 80),
        (either, "", "/", 80),
        (taken_back, ".", "sorry", 60),
        (lambda text: one_of_several(text, "."), "3,", "", 20),
        (lambda text: contrasted(text) is not None, "6,", "not ", 20),
    ],
)
def test_words_farther_from_a_value_than_this_are_not_read(
    reads: Callable[[str], bool], head: str, tail: str, longest: int
) -> None:
    text = head + " " * (longest - len(head + tail)) + tail
    assert reads(text)
    assert not reads(f"{head} {text.removeprefix(head)}")


def test_a_plain_claim_after_another_line_is_not_denied_by_it() -> None:
    assert not denied("That was false\nThe answer is")
    assert not denied("So:\nThat was false\nThe answer is")
    assert denied("I DON'T THINK THE ANSWER IS")
    assert denied("That was false\nthe right answer is")  # one sentence, for all that is known here


def test_blanks_in_a_styled_word_are_no_part_of_it() -> None:
    assert text_form(r"\text{ Yes }") == "yes"


def test_what_stands_before_a_contrast() -> None:
    assert contrasted("it is 56, not ") == "it is 56"
    assert contrasted("a long text says that it is 56, not ") == "a long text says that it is 56"
    assert contrasted("it is 56, and not $") == "it is 56"
    assert contrasted("it is 56, or ") is None


@pytest.mark.parametrize(
    ("prediction", "gold", "verdict"),
    [
        ("125", "1,25", None),  # two roots, perhaps
        ("1,25", "125", None),
        ("1,25", "1.25", True),
        ("1,25", "1.26", False),
        ("1.26", "1,25", False),
        ("B) 13", "B", True),
        ("B. 13", "13", True),
        ("B) 13", "C", None),
        ("B", "C. 13", None),
        ("x > 5", "x = 5", None),
        (r"x \approx 5", "5", True),
        ("x = y", "5", None),
        ("12:05", "0:05", None),
        ("3:4", "3 to 4", None),
        ("0:59:01", "1:00:00", None),
        ("x", "12_5 + 3", None),
        ("", "x", False),
        ("x", "", False),
        ("3 to 4", "3:4", True),
    ],
)
def test_what_the_fast_path_says(prediction: str, gold: str, verdict: bool | None) -> None:
    assert fast_verdict(prediction, gold) is verdict
