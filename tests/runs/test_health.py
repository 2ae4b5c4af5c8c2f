"""What a run's own history says of a step in which nothing could be learnt."""

from __future__ import annotations

from typing import Any

import pytest

from negaware.runs.health import collapse, what_became_of_it


def history(*rates: float, norm: float = 2.0) -> list[dict[str, Any]]:
    logged = [{"step": step, "rollout/pass_rate": rate, "train/grad_norm": norm} for step, rate in enumerate(rates, 1)]
    return [{"step": 0, "rollout/pass_rate": None, "train/grad_norm": None}, *logged]


def test_a_fall_is_blamed_on_the_training() -> None:
    said = what_became_of_it([*history(0.5625, 0.02), {"step": 3, "train/grad_norm": 310.0}], 0.0, 1.0)
    assert said == (
        "The pass rate was 56.2% at step 1 and is 0.0% now, after the weights moved at training.learning_rate 1, "
        "gradient norms up to 310. Training caused this, not the questions: in a new run, lower "
        "training.learning_rate"
    )


def test_a_rise_is_no_fault_of_the_questions() -> None:
    said = what_became_of_it(history(0.4, 0.8, 0.97), 1.0, 1e-5)
    assert said is not None
    assert said.startswith("The pass rate was 40.0% at step 1 and is 100.0% now, so the model has learnt these ")
    assert "set run.steps to 3" in said


@pytest.mark.parametrize("rates", [(), (0.02, 0.01), (0.0, 0.0)])
def test_questions_that_were_too_hard_from_the_beginning_stay_so(rates: tuple[float, ...]) -> None:
    assert what_became_of_it(history(*rates), 0.0, 1e-5) is None


def test_a_collapse_is_told_once_when_it_comes() -> None:
    rates = (0.5, 0.6, 0.4, 0.1, 0.05, 0.0)
    told = [collapse(history(*rates[:number]), 1e-3) is not None for number in range(len(rates) + 1)]
    assert told == [False, False, False, False, True, False, False]
    assert collapse(history(0.5, 0.1), 1e-3) == (
        "The pass rate was 50.0% at step 1 and is 10.0% now, after the weights moved at training.learning_rate 0.001, "
        "gradient norms up to 2. Lower training.learning_rate in a new run."
    )
