"""What can be set about evaluation."""

from __future__ import annotations

from pydantic import Field

from negaware.rollout.options import SamplingOptions
from negaware.tasks.options import TaskOptions
from negaware.validation import Options


class EvaluationSampling(SamplingOptions):
    """How answers are sampled for an evaluation, and how many."""

    completions: int = Field(1, ge=1)
    """Answers sampled to each problem."""


class DuringTraining(EvaluationSampling):
    """The evaluations on the way: often, and small."""

    every: int = Field(10, ge=1)
    """Steps from one to the next."""
    num_problems: int | None = Field(None, ge=1)
    """The first so many of the held-out problems; all by default."""


class EvaluationOptions(Options):
    """How the policy is judged on held-out problems, with sampling settings of its own."""

    task: TaskOptions
    """The held-out problems."""
    during: DuringTraining | None = None
    """Evaluations on the way; none if left out."""
    final: EvaluationSampling
    """avg@k before and after training; accuracy at temperature 0 is measured besides, with the same length limit."""
    seed: int | None = Field(None, ge=0, lt=2**63)
    """Decides which answers are sampled before training; by default run.seed, which decides those of all later
    evaluations. The runs of a study have one, 0 by default, so that all begin alike."""
