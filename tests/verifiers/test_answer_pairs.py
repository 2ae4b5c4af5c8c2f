"""What counts as the same answer: one table of pairs (prediction, gold) that must match, one of pairs that must not."""

import pytest

from negaware.verifiers.equivalence import fast_verdict, normal_form
from negaware.verifiers.math import MathVerifier

SAME_NUMBER = r"""
4                       4
+4                      4
007                     7
-5                      −5
3.0                     3
.5                      0.5
5.                      5
1,000                   1000
1{,}000                 1000
1\,000                  1000
12 000                  12000
11,\! 111,\! 100        11111100
1,234.50                1234.5
1,22                    1.22
1.22                    1,22
3,5                     3.5
7 days                  7
7                       7 days
5\text{ cm}             5 centimeters
\$1,234                 1234
$18$                    18
€7.50                   7.5
4e33                    4000000000000000000000000000000000
2.5 \times 10^{-3}      0.0025
1.5 × 10^3              1500
6 \cdot 10^{4}          60000
-1./3                   -1/3
\frac{1}{2}             0.5
\frac12                 1/2
\frac1{2}               \tfrac{1}2
\dfrac{2}{4}            \frac{1}{2}
-\frac{3}{4}            \frac{-3}{4}
2\frac{1}{2}            2.5
1 1/2                   3/2
2\frac58                2.625
10\%                    10
10\%                    0.1
50 percent              50\%
45^\circ                45
45^{\circ}              45°
36 degrees              36
5\text{ cm}             5
5\text{ cm}^2           5
12 \mathrm{~km}         12
10 square units         10
50 km/h                 50
12^{\text{th}}          12
x = 5                   5
f(2) = 5                5
AB = 4                  4
\boxed{7}               7
\frac{1}{3}             0.3333
\frac{2}{3}             0.666667
1/12                    0.0833333333333333
185\                    185
(7)                     7
"""

SAME_TEXT = r"""
\text{Evelyn}           Evelyn
\text{odd}              odd
YES                     yes
\mathrm{E}              E
(A)                     A
\text{(C)}              C
\textbf{(B)}\ 13        B
\textbf{(D)} \: 13      13
C. it is the largest    C
x^{2}                   x^2
(1, 2)                  (1,2)
[0,1)                   [0, 1)
12:30                   12:30
20:34                   08:34 \text{P.M.}
4210_{7}                4210_7
"""

SAME_VALUE = r"""
2\sqrt{3}               \sqrt{12}
\sqrt2                  \sqrt{2}
sqrt(2)                 \sqrt{2}
2√3                     \sqrt{12}
\frac{\sqrt{3}}{3}      \frac{1}{\sqrt{3}}
\frac{\sqrt{3}}{2}      0.8660254
40\pi                   125.6637
\sqrt{4}                2
2^{10}                  1024
5!                      120
\frac\pi2               \frac{\pi}{2}
2π                      2\pi
2*pi                    2\pi
x^2 + 2x + 1            (x+1)^2
(x-2)(x+2)              x^2 - 4
x**2                    x^2
5 - 5c                  5(1-c)
\frac{x+2}{7}           \frac{x}{7} + \frac{2}{7}
\sec^2 y                1 + \tan^2 y
\sin(90^\circ - x)      \cos x
\log_2 8                3
1 + 2i                  i(2 - i)
e^{2x}                  (e^x)^2
y = 2x + 3              f(x) = 3 + 2x
y = 2x + 3              2x + 3
k = \frac{1}{3}         1/3
(1, 4.5)                (1, \frac{9}{2})
\left(3, \frac{\pi}{2}\right)   (3, \pi/2)
(p, q) = (3, 2)         (3, 2)
{1, 2}                  1, 2
\{2, 1\}                \{1, 2\}
1, 2, 3                 3, 1, 2
1 \text{ and } 2        2, 1
6 or 8                  6, 8
x = 1, y = 2            1, 2
y = 2, x = 1            x = 1, y = 2
x = 2, x = -3           -3, 2
x_{1} = 2, x_{2} = -3   x = -3, x = 2
p=5,q=2;p=7,q=2         (5,2),(7,2)
(1,2),(3,4)             (3,4),(1,2)
3 \pm 2\sqrt{2}         3 - 2\sqrt{2}, 3 + 2\sqrt{2}
\pm 2021                -2021, 2021
[0.5, \infty)           [1/2, \infty)
x \in [-2, 7]           [-2, 7]
(-\infty, 2) \cup (3, \infty)   (-∞,2)∪(3,∞)
(0.6, 2.6667]           (\frac{3}{5}, \frac{8}{3}]
x \ge 5                 5 \le x
x < 1                   -x > -1
2x + 4y - 3 = 0         4x + 8y = 6
x^2/4 + y^2/3 = 1       3x^2 + 4y^2 = 12
\begin{pmatrix}1\\2\end{pmatrix}            \begin{bmatrix} 1 \\ 2.0 \end{bmatrix}
\begin{pmatrix}1&1/2\\0&4\end{pmatrix}      \begin{pmatrix} 1 & 0.5 \\ 0 & 4 \end{pmatrix}
\begin{pmatrix}1\\2\\3\end{pmatrix}         (1, 2, 3)
\frac{1}{3} \approx 0.33    1/3
7:32                    7:32
\text{Even}             \text{even}
"""

DIFFERENT = r"""
5                       4
-3                      3
3.01                    3
36                      360
1,000                   100
0.5                     0.6
5.001                   5
0.33                    1/3
3.14                    \pi
1.41                    \sqrt{2}
4e33                    4e32
2.55e-10                2.55e-9
28                      0.28
28                      28/100
1/3                     1/4
\frac{1}{0}             1
2+2                     4
3 + 4                   7
(9+1)                   10
3 \cdot 4               12
7 \times 6              42
12 - 5                  7
2^3 + 1                 9
12 cm                   13 cm
10 km                   10 m
7 days                  7 hours
5\text{ cm}             5\text{ m}
1.2                     1,2
3.5                     3,5
-1.2                    -1,2
3.55                    3, 55
\text{oddd}             odd
\text{east}             \text{west}
A                       B
(A)                     B
E                       d
1:00                    12:00
2\sqrt{3}               3\sqrt{2}
4\sqrt{2}               4
\frac{1+\sqrt{5}}{2}    2
1/2^{99}                1/2^{98}
x                       y
x+1                     x+2
x^2                     x^3
t+1                     x+1
|x|                     x
\sqrt{x^2}              x
e^x                     e^{2x}
11a + c                 7 = 11a + c
1                       2x + z = 1
0                       a + 3z = 0
x > 5                   x < 5
x > 5                   x \ge 5
\sin x = 1              \cos x = 1
x + y = 2               x + y = 3
[0, 9)                  [0, 1)
(0, 9)                  [0, 9)
(-3, 2)                 [-3, 2]
(2, 1)                  (1, 2)
(1, 2)                  (1, 2, 3)
1, 2                    1, 2, 3
2                       1, 2
1, 2                    2
\{1\}                   \{1, 2\}
1, 2, 3                 1, 2, 4
1, 1, 2                 2, 1
\sqrt{67}               \sqrt{67}, -\sqrt{85}
2021                    \pm 2021
3 + 2\sqrt{2}           3 \pm 2\sqrt{2}
3+2\sqrt{2}, 3+2\sqrt{2}    3 \pm 2\sqrt{2}
x = 2, y = 1            x = 1, y = 2
2, 1                    x = 1, y = 2
\begin{pmatrix}1\\2\end{pmatrix}            \begin{pmatrix} 2 \\ 1 \end{pmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix}        \begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}
\begin{pmatrix}1&2&3&4\end{pmatrix}         \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
1, 2, 3, ...            1, 2, 3
nothing at all          42
42                      not a number
x = 2                   y = 2
"""


def _pairs(table: str) -> list[tuple[str, str]]:
    pairs = [[cell.strip() for cell in line.split("  ", 1)] for line in table.splitlines() if line.strip()]
    return [(prediction, gold) for prediction, gold in pairs]


def _wrongly_graded(verifier: MathVerifier, pairs: list[tuple[str, str]], expected: bool) -> list[tuple[str, str]]:
    verdicts = verifier.grade_pairs([rf"Thus \boxed{{{left}}}." for left, _ in pairs], [right for _, right in pairs])
    return [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.correct is not expected]


def test_the_tables_hold_enough() -> None:
    assert len(_pairs(SAME_NUMBER + SAME_TEXT + SAME_VALUE)) >= 120
    assert len(_pairs(DIFFERENT)) >= 65


@pytest.mark.parametrize("table", [SAME_NUMBER, SAME_TEXT, SAME_VALUE], ids=["numbers", "texts", "values"])
def test_equal_answers_match(verifier: MathVerifier, table: str) -> None:
    assert _wrongly_graded(verifier, _pairs(table), True) == []


def test_different_answers_do_not_match(verifier: MathVerifier) -> None:
    assert _wrongly_graded(verifier, _pairs(DIFFERENT), False) == []


def test_numbers_are_settled_without_a_worker() -> None:
    plain = [pair for pair in _pairs(SAME_NUMBER) if "boxed" not in pair[0] and "(" not in pair[0]]
    assert [pair for pair in plain if fast_verdict(*pair) is not True] == []
    assert fast_verdict("5", "4") is False
    assert fast_verdict("3 + 4", "7") is False
    assert fast_verdict(r"\sqrt{4}", "2") is None


def test_spellings_of_one_value_have_one_normal_form() -> None:
    spellings = ["1/2", "0.5", r"\frac12", "x = .50", r"$\dfrac{2}{4}$"]
    assert {normal_form(text) for text in spellings} == {"1/2"}
    assert normal_form("1,000") == normal_form("1000") == "1000"
    assert normal_form("Odd") == normal_form(r"\text{odd}") == "odd"
    assert len({normal_form(text) for text in ["50", r"50\%", "-50", "(1, 2)", "(2, 1)"]}) == 5


WHOLE_TEXTS = [
    (r"First \boxed{3}, on reflection \boxed{4}.", "4", True),
    (r"First \boxed{3}, on reflection \boxed{4}.", "3", False),
    (r"\boxed{1} and \boxed{2}", "1, 2", True),
    (r"\boxed{1} and \boxed{2}", "2", True),
    (r"\boxed{1} and \boxed{2}", r"So $\boxed{2}$ or $\boxed{1}$.", True),
    (r"\boxed{1} then \boxed{2}", "1, 2", False),
    (r"The wrong answer is \boxed{43}, though 42 was asked", "42", False),
    ("The answer is $x=5$.", "5", True),
    ("It rises by $28$ %.", r"28\%", True),
    ("There are 1,000 apples and 2,000 oranges.", "2000", True),
    ("She pays $7.78 for it.", "7.78", True),
    ("48 + 24 = <<48+24=72>>72\n#### 72", "72", True),
    ("48 + 24 = 72\n#### 73", "She has 72.\n#### 72", False),
    ("The final answer is $(0, 1)$. I hope it is correct.", "[0, 1)", False),
    ("Therefore $x \\geq 5$ is the solution.", "$x >= 5$", True),
    (r"\[ \boxed{\text{C}} \]", r"\textbf{(C)}", True),
    ("Is it 42?", "", False),
    ("", "", False),
    (r"\boxed{}", "", False),
]


def test_whole_texts_are_graded_by_their_final_answer(verifier: MathVerifier) -> None:
    verdicts = verifier.grade_pairs([text for text, _, _ in WHOLE_TEXTS], [gold for _, gold, _ in WHOLE_TEXTS])
    found = [(text, gold, verdict.correct) for (text, gold, _), verdict in zip(WHOLE_TEXTS, verdicts, strict=True)]
    assert found == WHOLE_TEXTS


def test_parseable_tells_values_from_mere_spellings(verifier: MathVerifier) -> None:
    golds = [
        "4",
        r"\frac{1}{2}",
        r"\sqrt{2}",
        "1, 2",
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        "",
        r"\frac{",
        "9^{9^9}",
    ]
    assert verifier.parseable(golds) == [True, True, True, True, True, False, False, False]
    (spelling,) = verifier.grade_pairs([r"\boxed{9^{9^{9}}}"], ["9^{9^9}"])
    assert spelling.reason == "correct"
