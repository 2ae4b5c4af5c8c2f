import time

import pytest

from negaware.verifiers.extract import METHODS, check_methods, conjoined_boxes, extract_answer

CASES = [
    # the last balanced box
    (r"So \boxed{4}.", "4"),
    (r"\boxed{1} then \boxed{2}", "2"),
    (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\fbox{7} is it", "7"),
    (r"\boxed 5", "5"),
    (r"\boxed{3} and then \boxed{\frac{1}{", None),
    (r"\boxed{3 + \boxed{5}", "5"),
    (r"The answer is 9, in a box \boxed{8}", "8"),
    (r"\boxed{\frac{1}{\boxed{2}}}", r"\frac{1}{\boxed{2}}"),
    (r"an empty box \boxed{} gives no answer, 5", None),
    # after "answer is", "answer:" and ####
    ("The answer is 12.", "12"),
    ("the ANSWER IS: 12", "12"),
    ("Answer: 12 apples", "12 apples"),
    ("**Answer:** 12", "12"),
    ("The answer is **-3.5**.", "-3.5"),
    ("The answer is $\\frac{3}{4}$. I hope it is correct.", r"\frac{3}{4}"),
    ("The answer is 3. No: the answer is 4, after 2 attempts.", "4"),
    ("The answer is Evelyn.", "Evelyn"),
    ("The answer is the sum of 3 and 4, which is 7.", "7"),
    ("The answer is 3 more than 12.", "3"),
    ("It costs\n#### 1,234", "1,234"),
    # a bare expression
    (r"\frac{1}{2}", r"\frac{1}{2}"),
    ("$x = 5$", "$x = 5$"),
    ("2*x + 1", "2*x + 1"),
    ("10 square units", "10 square units"),
    ("ellipse", "ellipse"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    # the last number or delimited formula
    ("First 3, then 4.", "4"),
    ("There are 1,000 apples and 2,000 oranges.", "2,000"),
    ("The price rises by 28 %.", "28 %"),
    ("We get 3/4 of it", "3/4"),
    (r"Half of it is \frac{1}{2} of course", r"\frac{1}{2}"),
    (r"Therefore $x \geq 5$ is the solution.", r"x \geq 5"),
    ("It costs $15 and takes $3 to post.", "3"),
    ("The difference is 5-3 in A2B", None),
    ("The difference is 5-3 = 2 in A2B", "2"),
    # no answer
    ("I do not know.", None),
    ("", None),
    (" \n ", None),
    ("<answer></answer>", None),
]


@pytest.mark.parametrize(("text", "answer"), CASES)
def test_auto_takes_the_methods_in_their_order(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_a_method_that_is_not_allowed_finds_nothing() -> None:
    assert extract_answer("The answer is 4.", ["boxed"]) is None
    assert extract_answer(r"\boxed{3} but the answer is 4.", ["answer_is"]) == "4"
    assert extract_answer(r"\boxed{3} but 4", ["last_number", "boxed"]) == "4"


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"$\boxed{1}$, $\boxed{2}$ or $\boxed{3}$", "1, 2, 3"),
        (r"x_1 = \boxed{1} \quad x_2 = \boxed{2}", "1, 2"),
        (r"\boxed{1} papers and \boxed{2} bins", "1, 2"),
        (r"\boxed{9} is wrong: \boxed{1}, \boxed{2}", "1, 2"),
        (r"\boxed{1} then \boxed{2}", None),
        (r"\boxed{1}", None),
    ],
)
def test_only_connectives_join_neighbouring_boxes(text: str, joined: str | None) -> None:
    assert conjoined_boxes(text) == joined


def test_unknown_methods_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'box'.*boxed, answer_is"):
        check_methods(["box"])
    with pytest.raises(ValueError, match="none"):
        check_methods([])
    assert check_methods("auto") == METHODS


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 500_000,
        "{" * 5_000_000 + r"\boxed{",
        r"\boxed{1" + "}" * 5_000_000,
        "$" * 5_000_001,
        r"\[" * 2_000_000,
        "answer is " * 500_000,
        "1," * 2_000_000,
        "9" * 5_000_000,
        "- " * 2_000_000,
        "a" * 10_000_000,
        r"\text{" * 1_000_000,
        "# " + "#" * 5_000_000,
        "\u202e" + "٣" * 1_000_000,
        r"\boxed{1}, " * 500_000,
    ],
    ids=lambda text: text[:12],
)
def test_extraction_is_quick_on_megabytes(text: str) -> None:
    start = time.process_time()  # whatever else the machine does
    answer = extract_answer(text)
    conjoined_boxes(text)
    assert time.process_time() - start < 1.0
    assert answer is None or len(answer) <= 20_000
