"""What the finished runs of a study came to, as plain values; statistics, tables, figures and page are made of these.

Nothing here knows where they come from or what is done with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from negaware.estimates import Estimate, clustered_estimate

PROBLEMS = Mapping[str, float]
"""The id of each held-out problem, and the share of its answers that were right."""


def run_name(variant: str, seed: int) -> str:
    """What a run's files and folder are called."""
    return f"{variant}-seed{seed}"


@dataclass(frozen=True, slots=True)
class RunResult:
    """One finished run of a study."""

    variant: str
    seed: int
    config_hash: str
    """Of all that the run depends on: equal for runs that must come to the same."""
    steps: int
    metrics: tuple[Mapping[str, float], ...]
    """metrics.jsonl's lines, numbers alone: "step", "seconds", "evaluation/accuracy", "train/entropy" and so on."""
    before: Mapping[str, PROBLEMS]
    """By measure ("greedy_accuracy", "avg_at_4"), before training; the same in every run of a seed."""
    after: Mapping[str, PROBLEMS]
    completions: Mapping[str, int]
    """By measure, how many answers a problem had."""
    questions: Mapping[str, str]
    """By problem, its question: problems with the same one are one cluster."""
    train_seconds: float
    total_seconds: float
    processor_seconds: float | None = None
    machine: str = ""
    """The processor's name, and how many of it the run could use."""
    margins: Mapping[str, float] | None = None
    """The study's when this was made; None: not known."""

    @property
    def name(self) -> str:
        """Of its files."""
        return run_name(self.variant, self.seed)

    def estimate(self, measure: str, problems: PROBLEMS) -> Estimate:
        """The mean of a measure over problems of this run, before or after, with the interval of these alone."""
        questions = [self.questions.get(one, one) for one in problems]
        return clustered_estimate([*problems.values()], self.completions.get(measure, 1), questions)


@dataclass(frozen=True, slots=True)
class StudyResults:
    """A study as far as it has come. Variants and seeds are in the order of the study's file."""

    name: str
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    reference: str
    """The variant that the others are compared with."""
    runs: tuple[RunResult, ...]
    margins: Mapping[str, float] = field(default_factory=dict)
    """By measure, the difference below which two variants match: chosen before the main runs. None given: no test."""

    def of(self, variant: str) -> list[RunResult]:
        """The finished runs of a variant, by seed."""
        return sorted((run for run in self.runs if run.variant == variant), key=lambda run: run.seed)

    def measures(self) -> list[str]:
        """What was measured at the end of every run, in order."""
        first = next(iter(self.runs), None)
        return [name for name in (first.after if first else ()) if all(name in run.after for run in self.runs)]
