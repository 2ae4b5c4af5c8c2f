"""The results of a study's finished runs, as plain values: statistics, tables, figures and page use nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from negaware.estimates import Estimate, clustered_estimate

PROBLEMS = Mapping[str, float]
"""Id of a held-out problem → the fraction of its answers that were right."""


def run_name(variant: str, seed: int) -> str:
    """The name of a run's folder and files."""
    return f"{variant}-seed{seed}"


@dataclass(frozen=True, slots=True)
class RunResult:
    """One finished run of a study."""

    variant: str
    seed: int
    config_hash: str
    """A hash of everything that the result depends on."""
    steps: int
    metrics: tuple[Mapping[str, float], ...]
    """The lines of metrics.jsonl, numbers only: "step", "seconds", "evaluation/accuracy", "train/entropy" and so on."""
    before: Mapping[str, PROBLEMS]
    """Measure ("greedy_accuracy", "avg_at_4") → problems, before training; the same in every run of a seed."""
    after: Mapping[str, PROBLEMS]
    completions: Mapping[str, int]
    """Measure → answers sampled to each problem."""
    questions: Mapping[str, str]
    """Problem id → question. Problems with the same question are one cluster."""
    train_seconds: float
    total_seconds: float
    processor_seconds: float | None = None
    machine: str = ""
    """The processor's name and how many CPUs the run could use."""
    margins: Mapping[str, float] | None = None
    """The study's margins when the run finished; None: not known."""

    @property
    def name(self) -> str:
        """The name of the run's folder and files."""
        return run_name(self.variant, self.seed)

    def estimate(self, measure: str, problems: PROBLEMS) -> Estimate:
        """The mean over the problems of one of this run's measures, with an interval for these problems alone."""
        questions = [self.questions.get(one, one) for one in problems]
        return clustered_estimate([*problems.values()], self.completions.get(measure, 1), questions)


@dataclass(frozen=True, slots=True)
class StudyResults:
    """The finished runs of a study. Variants and seeds are in the order of the study's file."""

    name: str
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    reference: str
    """The variant that the others are compared with."""
    runs: tuple[RunResult, ...]
    margins: Mapping[str, float] = field(default_factory=dict)
    """Measure → the difference below which two variants match. Without a margin, nothing is tested for a match."""

    def of(self, variant: str) -> list[RunResult]:
        """The finished runs of a variant, ordered by seed."""
        return sorted((run for run in self.runs if run.variant == variant), key=lambda run: run.seed)

    def measures(self) -> list[str]:
        """The measures that every run has at its end, in order."""
        first = next(iter(self.runs), None)
        return [name for name in (first.after if first else ()) if all(name in run.after for run in self.runs)]
