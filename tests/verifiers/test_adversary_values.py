"""The gold value in another shape, or as a computation left to the verifier, beside honest spellings of it."""

from negaware.verifiers.equivalence import fast_verdict
from negaware.verifiers.math import MathVerifier

# Each asks the verifier to compute what the question asked.
UNEVALUATED = [
    (r"\int_0^2 x dx", "2"),
    (r"\int_0^2 x\,dx", "2"),
    (r"\int_0^1 e^x dx", "e-1"),
    (r"\int 2x dx", "x^2"),
    ("∫_0^2 x dx", "2"),
    (r"\lim_{x\to 0}\frac{\sin x}{x}", "1"),
    (r"\gcd(48, 36)", "12"),
    ("gcd(48, 36)", "12"),
    (r"\text{gcd}(48, 36)", "12"),
    (r"\operatorname{lcm}(4,6)", "12"),
    ("lcm(4,6)", "12"),
    (r"\lceil 3.2\rceil", "4"),
    (r"\lfloor \frac{17}{5} \rfloor", "3"),
    (r"\max(3,12)", "12"),
    (r"\min\{3,12\}", "3"),
    (r"\det\begin{pmatrix}1&2\\3&4\end{pmatrix}", "-2"),
    (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", "-2"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^2", r"\begin{pmatrix}7&10\\15&22\end{pmatrix}"),
    (r"\sum_{k=1}^{3} k", "6"),
    ("∑_{k=1}^{3} k", "6"),
    (r"\prod_{k=1}^{3} k", "6"),
    (r"17 \bmod 5", "2"),
    (r"17 \mod 5", "2"),
    (r"\frac{d}{dx} x^2", "2x"),
]
OTHER_SHAPE = [
    ("1,2,3,4", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    ("(1,2,3,4)", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    ("1,1,2", "1,2,2"),
    ("1,2,2", "1,2"),
    ("1,2", "1,2,2"),
    ("5, 5", "5"),
    ("(2x-y+1)^2=0", "2x-y+1=0"),
    ("2x-y+1=0", "(2x-y+1)^2=0"),
    ("x^{1.0000001}", "x"),
    ("1.0000001x", "x"),
    ("x+0.0000001", "x"),
    (r"12 \quad 13", "1213"),
    (r"12\,13", "1213"),
    (r"12\ 13", "1213"),
    ("1 2 3", "123"),
    ("1 23", "123"),
    (r"1 \text{ }2", "12"),
    (r"\text{1 2 3}", "123"),
    ("1234 567", "1234567"),
    ("A number", "A"),
    ("½", "1"),
    ("1½", "11/2"),
    ("= 13", "12"),
    ("= 5 = 3", "5"),
]
RIGHT = [
    (r"\log_2 8", "3"),
    (r"\log_{10} 1000", "3"),
    (r"\binom{10}{3}", "120"),
    (r"\sin 30^\circ", "1/2"),
    ("5!", "120"),
    (r"\lfloor 3.7 \rfloor", "3"),
    (r"\gcd(a, b)", r"\gcd(a,b)"),
    (r"\sum_{k=1}^{n} k", r"\sum_{k=1}^n k"),
    (r"\{1, 1, 2\}", r"\{1, 2\}"),
    ("2,1,2", "1,2,2"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{bmatrix}1&2\end{bmatrix}"),
    ("4x-2y+2=0", "2x-y+1=0"),
    ("(1-x)(x+2)=0", "(x-1)(x+2)=0"),
    ("1.50x", r"\frac{3}{2}x"),
    ("1 234", "1234"),
    (r"12\,345\,678", "12345678"),
    ("½", "1/2"),
    ("½", r"\frac12"),
    ("¾", "0.75"),
    ("1½", "3/2"),
    ("2¾", "11/4"),
    ("⅝", "5/8"),
    (r"½\pi", r"\frac{\pi}{2}"),
    ("= 12", "12"),
    ("=12", "12"),
    ("-> 12", "12"),
    ("=> 12", "12"),
    ("→ 12", "12"),
    (r"\implies 12", "12"),
    (r"\Rightarrow \sqrt{8}", r"2\sqrt{2}"),
]
# A decimal stands for an exact value from four significant digits on, rounded or cut.
DECIMALS = [
    ("0.3333", "1/3", True),
    ("0.333", "1/3", False),
    ("0.3334", "1/3", False),
    ("0.6666", "2/3", True),
    ("0.6667", "2/3", True),
    ("0.0333", "1/30", False),
    ("0.03333", "1/30", True),
    ("3.14159", r"\pi", True),
    ("3.142", r"\pi", True),
    ("3.141", r"\pi", True),
    ("3.143", r"\pi", False),
    ("3.14", r"\pi", False),
    ("1.414", r"\sqrt{2}", True),
    ("1.415", r"\sqrt{2}", False),
    ("1.41", r"\sqrt{2}", False),
    ("22/7", r"\pi", False),
    ("3333/10000", "1/3", False),
    ("0.5001", "1/2", False),
    ("1.0000001", "1", False),
    ("-0.3333", "1/3", False),
    (r"\sqrt{2}", "1.414", True),
    (r"\sqrt{2}", "1.41", False),
]


def _right(verifier: MathVerifier, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    texts = [rf"Thus \boxed{{{prediction}}}." for prediction, _ in pairs]
    verdicts = verifier.grade_pairs(texts, [gold for _, gold in pairs])
    return [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.correct]


def test_a_computation_left_to_the_verifier_is_no_answer(verifier: MathVerifier) -> None:
    assert _right(verifier, UNEVALUATED) == []
    assert [pair for pair in UNEVALUATED if fast_verdict(*pair) is not False] == []  # settled without algebra


def test_values_in_another_shape_or_number_are_wrong(verifier: MathVerifier) -> None:
    assert _right(verifier, OTHER_SHAPE) == []


def test_closed_forms_signs_and_fractions_as_characters_are_read(verifier: MathVerifier) -> None:
    assert _right(verifier, RIGHT) == RIGHT


def test_a_decimal_stands_for_an_exact_value_from_four_digits_on(verifier: MathVerifier) -> None:
    right = [(prediction, gold) for prediction, gold, expected in DECIMALS if expected]
    assert _right(verifier, [(prediction, gold) for prediction, gold, _ in DECIMALS]) == right
