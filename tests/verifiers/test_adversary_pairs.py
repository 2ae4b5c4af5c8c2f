"""Pairs (text, gold answer) of other kinds than numbers: what must not be right, and what must stay right."""

from hypothesis import given, settings
from hypothesis import strategies as st

from negaware.verifiers.equivalence import fast_verdict
from negaware.verifiers.extract import extract_answer
from negaware.verifiers.math import MathVerifier

WRONG = [
    (r"\boxed{(A) or (B)}", "A"),
    (r"\boxed{A, B}", "A"),
    (r"\boxed{(A), (B), (C)}", "A"),
    (r"\boxed{(A) (B) (C)}", "A"),
    (r"\boxed{A. B. C.}", "A"),
    (r"\boxed{(C) is wrong}", "C"),
    (r"\boxed{A/B}", "A"),
    (r"\boxed{\text{A or B}}", "A"),
    ("The answer is A or B.", "A"),
    ("The answer is A, B and C.", "A"),
    ("The answer is A/B.", "A"),
    ("The answer is (A) (B).", "A"),
    ("The answer is not A.", "A"),
    ("The answer is between A and C.", "C"),
    (r"\boxed{2\pi \text{ m}}", r"2\pi \text{ cm}"),
    (r"\boxed{5\text{ cm}^2}", r"5\text{ cm}"),
    (r"\boxed{50 \text{ km/h}}", r"50 \text{ m/s}"),
    (r"\boxed{\$5}", "5 cents"),
    (r"\boxed{5\%}", "5 cm"),
    (r"\boxed{5 \text{ radians}}", r"5^\circ"),
    (r"\boxed{€5}", "£5"),
    (r"\boxed{5 \text{ square meters}}", "5 meters"),
    (r"\boxed{5\text{ cm}}", r"5\text{ cubic centimeters}"),
    (r"\boxed{2\sqrt{3}\text{ m}}", r"2\sqrt{3}\text{ km}"),
    (r"\boxed{silent}", "listen"),
    (r"\boxed{no}", "on"),
    (r"\boxed{\text{not even}}", "even"),
    (r"\boxed{\text{even or odd}}", "even"),
    ("The answer is not even.", "even"),
    ("The answer is even or odd.", "even"),
    (r"\boxed{4210}", "4210_5"),
    (r"\boxed{555}", "4210_5"),
    (r"\boxed{1010_2}", "10"),
    (r"\boxed{0.\overline{3}}", "0.3"),
    (r"\boxed{0.333}", r"0.\overline{3}"),
    (r"\boxed{0.\overline{12}}", r"0.\overline{21}"),
    (r"\boxed{31/2}", r"3\frac12"),
    (r"\boxed{3\frac{1}{2}}", "3/2"),
    (r"\boxed{1,234}", "1234.5"),
    (r"\boxed{1.5e3}", "1.5"),
    (r"\boxed{50\%}", "0.05"),
    (r"\boxed{0.5\%}", r"50\%"),
    (r"\boxed{(2,3)}", "[2,3]"),
    (r"\boxed{2}", "[2,3]"),
    (r"\boxed{x \ge 2}", r"(2,\infty)"),
    (r"\boxed{x > 2 \text{ or } x < 1}", "x > 2"),
    (r"\boxed{x \ne 2}", "x=2"),
    (r"\boxed{x>2}", "x<2"),
    (r"\boxed{2 < x < 3}", "[2,3]"),
    (r"\boxed{y > 2}", "x > 2"),
    (r"\boxed{\{1,2\}}", "1"),
    (r"\boxed{1 \in \{1,2\}}", "1"),
    (r"\boxed{1}", r"\{1,2\}"),
    (r"\boxed{x^2 + 1 \text{ or } x^2}", "x^2"),
    (r"\boxed{\sqrt{2} \text{ or } \sqrt{3}}", r"\sqrt{2}"),
    (r"\boxed{x = \sqrt{2} \text{ or } x = \sqrt{3}}", r"\sqrt{3}"),
    (r"\boxed{\sqrt{2}\text{ if } x>0}", r"\sqrt{2}"),
    (r"\boxed{\text{at least } \sqrt{2}}", r"\sqrt{2}"),
    (r"\boxed{\text{not } \sqrt{2}}", r"\sqrt{2}"),
    (r"\boxed{\text{maybe } x+1}", "x+1"),
    (r"\boxed{> \sqrt{2}}", r"\sqrt{2}"),
    (r"\boxed{\approx \sqrt{2} \text{ or so}}", r"\sqrt{2}"),
    (r"\boxed{f(x) = x \text{ or } f(x) = 2x}", "f(x)=2x"),
    (r"\boxed{f(x) = x, f(x) = 2x}", "2x"),
    (r"\boxed{x+1 \text{ for } x > 0}", "x+1"),
    (r"\boxed{x+1 \text{ for even } x}", "x+1"),
    (r"\boxed{x+1 \text{ where } x = 3}", "x+1"),
    (r"\boxed{x = x+1}", "x+1"),
    (r"\boxed{3:4}", "3:2"),
    (r"\boxed{3 \text{ to } 2}", "2:3"),
    (r"\boxed{5 \text{ to } 7}", "5"),
    (r"\boxed{7:30 \text{ or } 8:30}", "7:30"),
    ("Question: what is 7 + 8 - 5? Let me think", "5"),
    ("12 + 45", "45"),
    ("12 + 45 =", "45"),
    ("12 + 45 = ?", "45"),
    ("What is 12 + 45?", "45"),
    (r"\boxed{12} <think>", "11"),
    (r"<think> \boxed{5}", "5"),
    (r"\boxed{5} \boxed", "4"),
    (r"\boxed{5}\boxed{", "5"),
    ("</think>", "5"),
    ("<answer>5", "5"),
    (r"\boxed{5\%\text{ or }10\%}", r"5\%"),
    (r"\boxed{\frac{1}{2} \text{ or } \frac13}", "1/2"),
    (r"\boxed{-5}", "5"),
    ("The answer is 1/2 or 1/3.", "1/2"),
    (r"The answer is $\frac{1}{2}$ or $\frac13$.", "1/2"),
    (r"The answer is $\sqrt{2}$ or $2$.", r"\sqrt{2}"),
    (r"\boxed{\infty}", r"-\infty"),
    (r"\boxed{\text{None or } 5}", "5"),
    (r"\boxed{x}", "5"),
    (r"\boxed{5 \text{ mod } 7}", "5"),
    (r"\boxed{5 \pmod{9}}", r"5 \pmod{7}"),
]
RIGHT = [
    (r"\boxed{(A) 13}", "A"),
    ("√5", r"\sqrt{5}"),
    ("x ≤ 5", r"x \le 5"),
    (r"\boxed{\text{(C) It is conserved}}", "C"),
    ("The answer is (D), since 2 + 2 = 4.", "D"),
    ("The correct answer is option C.", "C"),
    ("答案是42。", "42"),
    ("<answer>C</answer>", "C"),
    (r"\boxed{1/3}", r"0.\overline{3}"),
    (r"\boxed{\varnothing}", r"\emptyset"),
    (r"\boxed{5=x}", "5"),
    (r"\boxed{5 million}", "5000000"),
    ("It costs 5 million dollars.", "5000000"),
    ("It costs $1.5 million.", "1500000"),
    (r"\boxed{x \ne 2}", r"(-\infty,2)\cup(2,\infty)"),
    (r"\boxed{1 \le x < 3}", "[1,3)"),
    (r"\boxed{3 > x \ge 1}", "[1,3)"),
    (r"\boxed{x<1 \text{ or } x>2}", r"(-\infty,1)\cup(2,\infty)"),
    ("12 + 45 = 57", "57"),
    ("57", "57"),
    ("The answer is 57.", "57"),
    ("Let me see. 12 + 45 is 57.", "57"),
    ("12 plus 45 equals 57", "57"),
    (r"\boxed{3+2\sqrt{2}}", "5.828427"),
    (r"\boxed{0.1\overline{6}}", "1/6"),
    (r"\boxed{x = 7 \text{ cm}}", "7"),
    ("The total is 12 dollars.", "12"),
    ("She will need 12 more apples.", "12"),
    ("There are more than enough, and 12 remain.", "12"),
    ("He has no money but 12 apples.", "12"),
    (r"\boxed{x^2 - 1 = (x-1)(x+1)}", "(x-1)(x+1)"),
    (r"\boxed{5 \text{ cm}}", "5"),
    (r"\boxed{1250\text{ m}^2}", "1250"),
    (r"\boxed{f(x) = x+1}", "x+1"),
]


def _right(verifier: MathVerifier, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    verdicts = verifier.grade_pairs([text for text, _ in pairs], [gold for _, gold in pairs])
    return [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.correct]


def test_no_pair_of_different_answers_is_right(verifier: MathVerifier) -> None:
    assert _right(verifier, WRONG) == []


def test_pairs_of_the_same_answer_are_right(verifier: MathVerifier) -> None:
    assert _right(verifier, RIGHT) == RIGHT


# In each the gold value g stands beside a wrong one, w, or is no claim.
TEMPLATES = [
    "The answer is {g} or {w}.",
    "The answer is {w} or {g}.",
    "The answer is either {w} or {g}.",
    "The answer is not {g}.",
    "The answer is at least {g}.",
    "The answer is {w} to {g}.",
    "The answer is {w} + {g}.",
    "The answer is {w}, {g}.",
    "It is {w} or {g}.",
    "It isn't {g}.",
    "What is {w} + {g}?",
    "x + {w} = {g}",
    "{w} - {g}",
    "#### {w} or {g}",
    "<think>{g}</think> {w}",
    "<answer>{g}</answer><answer>{w}</answer>",
    r"\boxed{{{g}}} and then \boxed{{{w}}}",
    r"\boxed{{{g}}} and then \boxed{{",
    r"\boxed{{{w} = {g}}}",
    r"\boxed{{{w}, {g}}}",
    r"\boxed{{{g}_{{{w}}}}}",
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TEMPLATES), st.integers(2, 9999), st.integers(2, 9999))
def test_a_value_beside_another_is_never_right_by_numbers(template: str, gold: int, wrong: int) -> None:
    found = extract_answer(template.format(g=gold, w=wrong if wrong != gold else wrong + 1))
    assert found is None or fast_verdict(found, str(gold)) is not True


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["{g}", "{a} + {b} = {g}", "The answer is {g}.", "It is {g} apples."]),
    st.integers(0, 999),
    st.integers(0, 99),
)
def test_short_answers_of_small_models_are_right(template: str, a: int, b: int) -> None:
    text = template.format(a=a, b=b, g=a + b)
    assert extract_answer(text, ["last_number"]) == str(a + b)
