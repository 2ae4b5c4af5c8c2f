"""Texts in which one part of a rule of extraction decides, by what they mean."""

from collections.abc import Callable

import pytest

from negaware.verifiers.extract import _formulas, conjoined_boxes, extract_answer
from negaware.verifiers.hedges import (
    asks,
    denied,
    either,
    hedged_after,
    hedged_before,
    is_hedged,
    one_of_several,
    taken_back,
    unfinished,
)

BOXES = [
    (r"\fbox{3} was a guess: \fbox{5}", "5"),
    (r"\boxed{3}\boxed{5}", "5"),
    (r"\boxed{3}\boxed 5", "5"),
    (r"\boxed{x \boxed{3} \boxed 5}", r"x \boxed{3} \boxed 5"),
    (r"\boxed{3} or \boxed{5}. Of that I am sure.", "3 or 5"),
    (r"\boxed{3} or so. Then \boxed{5}", "5"),
    (r"\boxed{ 5 }", "5"),
    (r"\boxed{the answer to this}", "the answer to this"),
    (r"\boxed{5}isn't", None),
    (r"\boxed{5}" + " " * 99 + "isn't", None),
    (r"\boxed{3}, for 4 isn't prime", "3"),
    (r"\boxed{5} cm. Sorry for the length.", "5"),
    (r"I don't think the answer is \boxed{5} of them", None),
    (r"That is false.\nThe answer is \boxed{5}", "5"),
    (r"\boxed{5} and \boxed{", None),
]
PHRASES = [
    ("The answer is **$5$, B**", "5"),
    ("#### $blue$, B", "blue"),
    (r"#### \(5\)", "5"),
    ("Answer: _5_", "5"),
    ("Answer: ` 5 ` ", "5"),
    ("The answer is 3, not 4 but close.", "3"),
    ("The answer is not 4 but 3.", "3"),
    ("The answer is $5$, as $7$.", "5"),
    ("The answer is $5$\\% + 3", "$5$\\% + 3"),
    ("The answer is $50$ of the 3 in %.", "50"),
    ("The answer is the $5$ of $7$.", "7"),
    ("The answer is A,", "A"),
    ("The answer is C;", "C"),
    ("The answer is (D.", "D"),
    ("The answer is D) 5 apples", "D"),
    ("The answer is A, B and C", "A, B and C"),
    ("The answer is x\nno", "x or"),
    ("The answer is x. Or", "x or"),
    ("The answer is 7 of the 5 million people.", "7"),
    ("The answer is 7 million people of 9.", "7 million"),
    ("The answer is found among 3 and then 5", "found among 3 and then 5"),
    ("The answer is found among 3 and is 5", "5"),
    ("Answer: (", "("),
    ("Answer: in words, " + "x" * 85 + " 2", "2"),
    ("Answer: " + "ab " * 33 + "c", "ab " * 33 + "c"),
    ("Answer: " + "ab " * 33 + "cd", None),
    ("Answer: " + "ab " * 29 + "found 3 and 5", "ab " * 29 + "found 3 and 5"),
    ("Answer: " + "ab " * 29 + "founds 3 and 5", None),
    ("I don't think that the answer is 5", None),
    ("The answer is $5$ or more.", "$5$ or more"),
    ("a < 5", None),
    ("The answer is 5" + " " * 19_989, "5"),
    ("The answer is 5" + " " * 19_990, None),  # only so much of a text's end is searched
]
WHOLE = [
    ("*5*", "5"),
    ("\n**5**\n", "5"),
    ("__ 5 __", "5"),
    ("$", None),
    ("()", None),
    (".", None),
    ("5 apples,", "5 apples,"),
    ("So $5$", None),
    ("$5$ it", None),
    ("$5$.", "$5$."),
    ("2 Sin x + Cos y", "2 Sin x + Cos y"),
    ("ABCDEF + GHI = 7", "ABCDEF + GHI = 7"),
    ("ABCDEFG + HIJ = 7", None),
]
NUMBERS = [
    ("Of $x+1$ we take 5.", "5"),
    ("It is $x$5", "5"),
    ("We take 5 of $x+1$.", "x+1"),
    ("It is $5$, given in %.", "5"),
    (r"It is \frac 1 2.", r"\frac 1 2"),
    ("It is 5, but with $blue$ and $ $.", "5"),
    ("It is $5" + "+1" * 2000 + "$", "5" + "+1" * 2000),
    ("<answer>5</answer> 6</answer>", "5"),
    ("<answer>3</answer><answer>5</answer>", "5"),
    ("<answer>3!", None),
    ("a < b, so it is 5", "5"),
    ("<think>3</think> 5 <think>7</think> 9 <think> 11 <think> 13", "9"),
    ("3 </think> so", None),
    ("It is $x$5; so.", "5"),
    ("It is twice $x$.", None),
    ("Is it 5 of them?", None),
    ("It is 5 million.", "5 million"),
    ("5" + " a" * 9_999, "5"),
    ("5" + " a" * 10_000, None),
    ("I don't think the answer is 5 of them", None),
]


@pytest.mark.parametrize(
    ("method", "text", "answer"),
    [
        (method, *case)
        for method, cases in {"boxed": BOXES, "answer_is": PHRASES, "bare": WHOLE, "last_number": NUMBERS}.items()
        for case in cases
    ],
)
def test_what_decides(method: str, text: str, answer: str | None) -> None:
    methods = ["answer_is", "hashes"] if method == "answer_is" else [method]
    assert extract_answer(text, methods) == answer


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        (r"\boxed{1}, \boxed\boxed{2}", None),
        (r"\boxed\boxed 5", None),
        (r"\boxed{1}" + " " * 300 + r"\boxed{2}", "1, 2"),
        (r"\boxed{1}" + " " * 300 + r"wrong \boxed{2}", None),
        (r"\boxed{1}\boxed{2}", "1, 2"),
        (r"\boxed{1}, \boxed{2} \boxed{", None),
    ],
)
def test_which_boxes_are_joined(text: str, joined: str | None) -> None:
    assert conjoined_boxes(text) == joined


@pytest.mark.parametrize(
    ("text", "found"),
    [("$$a\nb$$", [("a\nb", 0, 7)]), ("$ $", []), ("$ $ a $b$", [("b", 6, 9)]), ("$ a $", [("a", 0, 5)])],
)
def test_formulas(text: str, found: list[tuple[str, int, int]]) -> None:
    assert list(_formulas(text)) == found


@pytest.mark.parametrize(
    ("reads", "beside", "apart"),
    [
        (either, " or ", " or so. Then "),
        (taken_back, ". Sorry", " cm. Sorry"),
        (hedged_after, " apples or pears", " apples. Red or blue"),
        (asks, " cm?", " cm. Is it?"),
        (denied, "It is false that the answer is ", "It is false\n The answer is "),
        (hedged_before, "不是", "不是。"),
        (hedged_before, "It isn’t ", "It isn’t so, "),
        (unfinished, "so 2x = ", "so 2x = 4 and x = "),
        (is_hedged, "5 or 6", "5 oranges"),
        (lambda text: one_of_several("It is 3, 4, ", text), ".", " apples."),
    ],
)
def test_a_hedge_stands_right_beside_its_value(reads: Callable[[str], bool], beside: str, apart: str) -> None:
    assert reads(beside)
    assert not reads(apart)
