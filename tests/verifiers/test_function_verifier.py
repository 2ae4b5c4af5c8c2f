from collections.abc import Callable

import worker_functions as work

from negaware.types import Problem, Verdict
from negaware.verifiers.function import FunctionVerifier
from negaware.verifiers.limits import Limits

PROBLEM = Problem(id="1", question="?", answer="42")


def grade(function: Callable[[str, Problem], bool], texts: list[str], limits: Limits | None = None) -> list[Verdict]:
    verifier = FunctionVerifier(function, limits)
    verdicts = verifier.grade(texts, [PROBLEM] * len(texts))
    verifier.close()
    return verdicts


def test_the_whole_text_goes_to_the_function() -> None:
    verdicts = grade(work.contains_gold, ["first 42, then 7", " 7 ", "  "])
    assert verdicts == [
        Verdict(True, "correct", "first 42, then 7"),
        Verdict(False, "wrong", "7"),
        Verdict(False, "no_answer"),
    ]


def test_every_misbehaviour_has_its_reason() -> None:
    texts = ["fine", "raise", "hang", "string", "exit", "fine"]
    verdicts = grade(work.misbehave, texts, Limits(workers=1, seconds=0.5))
    assert [verdict.reason for verdict in verdicts] == ["correct", "error", "timeout", "error", "error", "correct"]
    assert [verdict.correct for verdict in verdicts] == [True, False, False, False, False, True]
    assert verdicts[4].extracted == "it called sys.exit(3)"
