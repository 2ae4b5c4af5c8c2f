"""What a policy might be paid for and must not be: answers that name the gold value without giving it."""

from negaware.verifiers.math import MathVerifier

# Each holds 5, none says that the answer is 5.
NOT_FIVE = r"""
\boxed{x = 3 \text{ or } x = 5}
\boxed{x = 5 \text{ or } x = 3}
\boxed{x = 3 or 5}
\boxed{3 = 5}
\boxed{x = 3 = 5}
\boxed{x = 3, y = 5}
\boxed{3 \lor 5}
\boxed{3 \vee 5}
\boxed{3 / 5}
\boxed{3 | 5}
\boxed{3 ; 5}
\boxed{3 : 5}
\boxed{3 \\ 5}
\boxed{3 \text{ and } 5}
\boxed{(3, 5)}
\boxed{\{3, 5\}}
\boxed{[3, 5]}
\boxed{3 \boxed{5}}
\boxed{\pm 5}
\boxed{x = \pm 5}
\boxed{|x| = 5}
\boxed{5 \pm 1}
\boxed{x + 2 = 5}
\boxed{5 = x + 2}
\boxed{2x = 5}
\boxed{x^2 = 5}
\boxed{\sqrt{x} = 5}
\boxed{\log x = 5}
\boxed{\lfloor x \rfloor = 5}
\boxed{x y = 5}
\boxed{x > 5}
\boxed{x \ge 5}
\boxed{x \ne 5}
\boxed{\ne 5}
\boxed{\neq 5}
\boxed{> 5}
\boxed{>5}
\boxed{\ge 5}
\boxed{\le 5}
\boxed{< 5}
\boxed{\neg 5}
\boxed{5+}
\boxed{5?}
\boxed{5!}
\boxed{5'}
\boxed{5...}
\boxed{5\ldots}
\boxed{5x}
\boxed{5i}
\boxed{5_7}
\boxed{5 \pmod 7}
\boxed{5 \bmod 3}
\boxed{\text{not } 5}
\boxed{not x = 5}
\boxed{\text{either } x = 5}
\boxed{\text{at least } 5}
\boxed{5 \text{ or more}}
\boxed{5 \text{ or so}}
\boxed{5 \text{ is wrong}}
\boxed{5 \text{ if } n \text{ is even}}
\boxed{5 \text{ if n is even}}
\boxed{5 \text{ thousand}}
\boxed{5 million}
\boxed{5 dozen}
\boxed{5 \text{ squared}}
\boxed{5 \text{ factorial}}
\boxed{5 \text{ more than } 2}
\boxed{5 \text{ less than ten}}
\boxed{\text{between } 4 \text{ and } 5}
\boxed{\text{maybe } 5}
\boxed{2 + 3}
\boxed{10 - 5}
\boxed{10 / 2 + 0}
\boxed{\frac{2+3}{1}}
\boxed{2 + \sqrt{9}}
\boxed{5 \cdot 1}
\boxed{1 \cdot \sqrt{25}}
\boxed{5 + 0}
\boxed{5 - 0i}
\boxed{\cancel{5}}
either \boxed{3} or \boxed{5}
\boxed{3}$ or $\boxed{5}
The answer is not \boxed{5}.
It can't be \boxed{5}.
\boxed{5} is not correct.
\boxed{5} is wrong.
\boxed{5}. That is wrong; the answer is 7.
\boxed{5} and then \boxed{
\boxed{5} and then \boxed{\frac{1}{
\boxed{5}, or rather \boxed{}
<think>\boxed{5}</think>
<think> So it is 5.
<think>5</think> I don't know.
<thinking>5</thinking>
<answer>3</answer> 5
<answer>5</answer> no: <answer>3</answer>
<answer>5</answer> <answer>
<answer>3 or 5</answer>
<answer>not 5</answer>
The answer is 3 or 5.
The answer is 5 or 3.
The answer is either 3 or 5.
The answer is 5 apples or 3 pears.
The answer is 5. Or 3.
The answer is 5. Or maybe it is 3.
The answer is $5$ or $3$.
The answer is $3$ or $5$.
The answer is $5$ is wrong.
The answer is 3, 4, 5.
The answer is 5, 4, 3.
The answer is 3 and 5.
The answer is not 5.
The answer isn't 5.
The answer is never 5.
The answer cannot be 5.
The answer is at least 5.
The answer is at most 5 apples.
The answer is more than 5.
The answer is less than 5 apples.
The answer is between 3 and 5.
The answer is up to 5.
The answer is x > 5.
The answer is 5 or more.
The answer is maybe 5.
The answer is 2 + 3.
The answer is 2 + 3 apples.
The answer is 10 - 5 apples.
The answer is the sum of 2 and 5.
The answer is minus 5.
The answer is negative 5.
The answer is √5.
The answer is the square root of 5.
The answer is half of 5.
The answer is twice 5.
The answer is the square of $5$.
The answer is anything but 5.
√5
x ≠ 5
It is 3 versus 5.
It is between 3 and 5.
It is 3, alternatively 5.
I doubt that it is 5.
5 is the wrong answer.
The answer is the difference of 10 and 5.
The answer is 5 thousand.
The answer is 5 million dollars.
The answer is 5 times 3.
The answer is 5%-10%.
The answer is 5-7.
The answer is 5 to 7.
The answer is 5, but the answer is 3.
Answer: 3 or 5
#### 3 or 5
#### 5 or 3
#### not 5
#### at least 5
#### 2 + 3
It is 3 or 5.
It's not 5.
It isn't equal to 5.
It can't be 5.
It is at least 5.
It is less than 5.
It is more than 5 apples.
So x = 3 or x = 5.
Solve x + 2 = 5.
We know that 2x = 5.
What is 10 - 5?
How much is 0 + 5 apples?
Is it 5?
First we compute 10 - 5
It costs 5 million dollars.
It costs 5 thousand.
答案是3或5。
答案不是5。
答案是3万5千。
答案是5万。
"""

# Each says 5, in a way that an honest model does.
FIVE = r"""
5
5.
**5**
$5$
x = 5
5 = x
2 + 3 = 5
The sum of 2 and 3 is 5.
The answer is 5.
The answer is 5 apples.
The answer is $5.
The answer is **5**.
The answer is 5, not 3.
The answer is 5, since 2 + 3 = 5.
The answer is 5 because either way 2 + 3 = 5.
The answer is 2 + 3 = 5.
The answer is 2 + 3 = 5 apples.
The answer is 3. No: the answer is 5, after 2 attempts.
The answer is approximately 5.
The answer is exactly 5.
Answer: 5 apples
So 10 - 5 = 5
It is not 3 but 5.
It isn't 3. It is 5.
3 is wrong, so it is 5.
Half of 10 is 5.
The square root of 25 is 5.
√25 = 5
She has 5 apples left.
#### 5
\boxed{5}
\boxed{x = 5}
\boxed{5 = x}
\boxed{x \approx 5}
\boxed{2 + 3 = 5}
\boxed{x = 2 + 3 = 5}
\boxed{x = 10/2 = 5}
\boxed{AB = 5}
\boxed{f(2) = 5}
\boxed{|AB| = 5}
\boxed{\angle ABC = 5^\circ}
\boxed{5 \text{ apples}}
\boxed{5\text{ cm}}
\boxed{\large 5}
\boxed{\text{The answer is } 5}
\boxed{{5}}
\boxed{3}, no: \boxed{5}
So n is at least $\boxed{5}$.
<think>3 or 4?</think> \boxed{5}
<think>3 or 4?</think> The answer is 5.
<answer>5</answer>
<answer>x = 5</answer>
3 or 4 </think> 5
答案是5。
答案为 5 个。
因此一共有5个苹果。
La respuesta es 5.
Die Antwort ist 5.
"""


def _lines(table: str) -> list[str]:
    return [line for line in table.splitlines() if line.strip()]


def _graded(verifier: MathVerifier, texts: list[str], gold: str) -> list[str]:
    return [
        text
        for text, verdict in zip(texts, verifier.grade_pairs(texts, [gold] * len(texts)), strict=True)
        if verdict.correct
    ]


def test_no_answer_that_only_names_the_gold_value_is_right(verifier: MathVerifier) -> None:
    assert _graded(verifier, _lines(NOT_FIVE), "5") == []


def test_an_honest_answer_is_right(verifier: MathVerifier) -> None:
    assert _graded(verifier, _lines(FIVE), "5") == _lines(FIVE)
