import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from negaware.types import Problem, Verdict
from negaware.verifiers.equivalence import fast_verdict
from negaware.verifiers.limits import Limits
from negaware.verifiers.math import MathVerifier
from negaware.verifiers.pool import Outcome, WorkerPool

REASONS = {"correct", "wrong", "no_answer", "timeout", "error"}

HOSTILE = [
    r"9^{9^9}",
    r"9^{9^{9^9}}",
    r"2^{10^9}",
    r"(10^8)!",
    r"((10^8)!)!",
    r"\log(\log(\log(10^{10^{10}})))",
    r"10^{10^{10}} - 10^{10^{10}}",
    r"\sum_{k=1}^{10^9} \frac{1}{k^2}",
    r"\prod_{k=1}^{10^6} (x + k)",
    r"\int_0^1 x^{x^{x}} \sin(x^x) dx",
    r"(x+y+z+w)^{900}",
    r"\sqrt{" * 300 + "x" + "}" * 300,
    "(" * 1500 + "x" + ")" * 1500,
    "x+" * 900 + "x",
    "x" * 1900,
    "__import__('os').system('touch /tmp/negaware-was-here')",
    "exec('raise SystemExit')",
    r"\text{\text{\text{\text{x}}}}",
    "\x00\x00",
    "\ud800 1",
    "\u202e123\u202c x",
    r"\frac{1}{0}",
    r"\lim_{x\to 0} \frac{\sin x}{x^{x}}",
    "y" + "'" * 1000,
    "{" * 1900,
    r"\begin{pmatrix}" * 50,
    "1" * 1900,
    "1e999999999",
    "99999999 choose 9999999",
    r"\binom{99999999}{4999999}",
]


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    """One that waits no longer than a user's does."""
    with MathVerifier() as shared:
        yield shared


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:24]))
def test_a_hostile_text_gets_a_verdict_within_two_seconds(verifier: MathVerifier, text: str) -> None:
    """Of this process's own time, and a worker's deadline: that workers are killed then is the pool's tests' affair."""
    start = time.process_time()
    (verdict,) = verifier.grade_pairs([rf"\boxed{{{text}}}"], [r"x^2 \sqrt{3} + 1"])
    assert time.process_time() - start + Limits().seconds < 2.0
    assert not verdict.correct
    assert verdict.reason in REASONS


def test_a_tower_equals_itself_and_nothing_else(verifier: MathVerifier) -> None:
    texts = [r"9^{9^9}", r"9^{9^9}", r"\frac{1}{2^{99}}", "2^{10^9}"]
    golds = [r"9^{9^{9}}", r"9^{9^8}", r"\frac{1}{2^{98}}", "1"]
    assert [verdict.correct for verdict in verifier.grade_pairs(texts, golds)] == [True, False, False, False]


def test_a_worker_that_hangs_costs_one_timeout_only() -> None:
    # Past every guard: a limit this short makes an ordinary comparison the hostile one.
    with MathVerifier(limits=Limits(workers=1, seconds=1e-4)) as hasty:
        (slow,) = hasty.grade_pairs([r"\boxed{(x+1)^{40}}"], [r"(1+x)^{41}"])
        (quick,) = hasty.grade_pairs([r"\boxed{4}"], ["4"])
    assert slow == Verdict(False, "timeout", "(x+1)^{40}")
    assert quick.reason == "correct"


def test_a_broken_pool_is_an_error_not_an_exception(verifier: MathVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorkerPool, "run", lambda self, function, calls: [Outcome("error", "gone")] * len(calls))
    (verdict,) = verifier.grade_pairs([r"\boxed{x+y^2}"], ["y^3+x"])
    assert verdict == Verdict(False, "error", "gone")


def test_order_and_counts_survive_a_mixed_batch(verifier: MathVerifier) -> None:
    right, wrong, hostile = r"\boxed{2\sqrt{3}}", r"\boxed{5}", r"\boxed{9^{9^9}}"
    texts = [right, wrong, hostile, "", right, right] * 20
    problems = [Problem(id=str(index), question="?", answer=r"\sqrt{12}") for index in range(len(texts))]
    verdicts = verifier.grade(texts, problems)
    assert [verdict.correct for verdict in verdicts] == [True, False, False, False, True, True] * 20
    assert [verdict.reason for verdict in verdicts[:4]] == ["correct", "wrong", "wrong", "no_answer"]


_COMMANDS = [r"\frac", r"\sqrt", r"\boxed{", r"\text{", r"\left", r"\{", r"\pm", r"\cup", r"\begin{pmatrix}", r"\\"]
_PIECES = st.sampled_from([*"0123456789+-*/^_(){}[],.;:!=<>|&%$# \n\\'\"xi√٣", *_COMMANDS, "answer is ", "####", "and"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(_PIECES, max_size=30).map("".join), min_size=8, max_size=8))
def test_any_text_against_any_gold_gets_a_verdict(verifier: MathVerifier, texts: list[str]) -> None:
    verdicts = verifier.grade_pairs(texts, texts[::-1])
    assert len(verdicts) == len(texts)
    assert all(verdict.reason in REASONS for verdict in verdicts)
    assert all(verdict.correct == (verdict.reason == "correct") for verdict in verdicts)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200), st.text(max_size=200))
def test_the_fast_path_is_total(prediction: str, gold: str) -> None:
    assert fast_verdict(prediction, gold) in (True, False, None)


def test_the_trainers_process_never_holds_a_symbolic_library() -> None:
    script = (
        "import sys\n"
        "from negaware.verifiers.math import MathVerifier\n"
        "if __name__ == '__main__':\n"
        "    with MathVerifier() as verifier:\n"
        "        verdicts = verifier.grade_pairs([r'\\boxed{\\sqrt{12}}', '4'], [r'2\\sqrt{3}', '4.0'])\n"
        "    assert all(verdict.correct for verdict in verdicts), verdicts\n"
        "    print(sorted({'sympy', 'math_verify', 'latex2sympy2_extended', 'torch'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
    assert done.stderr == ""
