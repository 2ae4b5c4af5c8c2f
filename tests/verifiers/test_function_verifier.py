import pytest
import worker_functions as work

from negaware.types import Problem, Verdict
from negaware.verifiers.function import FunctionVerifier
from negaware.verifiers.pool import WorkerPool

PROBLEM = Problem(id="1", question="?", answer="42")


def test_the_whole_text_goes_to_the_function_unless_methods_are_named() -> None:
    texts = ["first 42, then 7", "7", "  "]
    with WorkerPool(num_workers=1) as pool:
        whole = FunctionVerifier(work.contains_gold, pool=pool).grade(texts, [PROBLEM] * 3)
        last = FunctionVerifier(work.contains_gold, ["last_number"], pool=pool).grade(texts, [PROBLEM] * 3)
    assert [verdict.reason for verdict in whole] == ["correct", "wrong", "no_answer"]
    assert last[0] == Verdict(False, "wrong", "7")


def test_every_misbehaviour_has_its_reason() -> None:
    texts = ["fine", "raise", "hang", "string", "fine"]
    with FunctionVerifier(work.misbehave, pool=WorkerPool(num_workers=1, seconds=0.5)) as verifier:
        verdicts = verifier.grade(texts, [PROBLEM] * 5)
    assert [verdict.reason for verdict in verdicts] == ["correct", "error", "timeout", "error", "correct"]
    assert [verdict.correct for verdict in verdicts] == [True, False, False, False, True]


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="'boxes'"):
        FunctionVerifier(work.contains_gold, ["boxes"])
