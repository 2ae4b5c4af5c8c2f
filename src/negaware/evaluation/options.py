"""The options of evaluation."""

from __future__ import annotations

from pydantic import Field

from negaware.rollout.options import SamplingOptions
from negaware.tasks.options import TaskOptions
from negaware.validation import Options


class EvaluationSampling(SamplingOptions):
    """How many answers are sampled for an evaluation, and how."""

    completions: int = Field(1, ge=1)
    """Answers sampled to each problem."""


class DuringTraining(EvaluationSampling):
    """The small, frequent evaluations during training."""

    every: int = Field(10, ge=1)
    """Steps from one evaluation to the next."""
    num_problems: int | None = Field(None, ge=1)
    """Only the first so many held-out problems; by default all."""


class EvaluationOptions(Options):
    """How the policy is evaluated on held-out problems; sampling has separate settings here."""

    task: TaskOptions
    """The held-out problems."""
    during: DuringTraining | None = None
    """Evaluations during training; none if left out."""
    final: EvaluationSampling
    """avg@k before and after training; accuracy at temperature 0 is measured too, with the same length limit."""
    seed: int | None = Field(None, ge=0, lt=2**63)
    """The seed of the answers sampled before training; by default run.seed, which is the seed of all later evaluations.
    All runs of a study have the same one, by default 0, so that they begin alike."""
