"""A study's results without a run: accuracies that rise by a known amount, the same problems in every run."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from negaware.studies.results import RunResult, StudyResults

NINE = ("nft", "rft", "rft-omega", "grpo", "dr_grpo", "dapo", "infonca", "maxrl", "w_reinforce")


def run_result(variant: str, seed: int, lift: float, *, steps: int = 20, problems: int = 120) -> RunResult:
    """A run whose accuracy rises from 0.2 by `lift`, give or take a seed's own luck."""
    source = random.Random(f"{variant} {seed}")
    luck = source.gauss(0, 0.02)
    hardness = random.Random(0)
    before, after = {}, {}
    for number in range(problems):
        base = min(0.98, max(0.02, 0.2 + 0.15 * hardness.gauss(0, 1)))
        end = min(0.99, max(0.01, base + lift + luck))
        name = f"sum-{number}"
        before[name] = (base, sum(random.Random(f"{name} {k}").random() < base for k in range(4)) / 4)
        after[name] = (float(source.random() < end), sum(source.random() < end for _ in range(4)) / 4)
    metrics = [_metrics(step, steps, lift + luck, source) for step in range(steps + 1)]
    measures = ("greedy_accuracy", "avg_at_4")
    return RunResult(
        variant=variant,
        seed=seed,
        config_hash="0" * 16,
        steps=steps,
        metrics=tuple(metrics),
        before={
            "greedy_accuracy": {name: float(values[0] > 0.25) for name, values in before.items()},
            "avg_at_4": {name: values[1] for name, values in before.items()},
        },
        after={key: {name: values[place] for name, values in after.items()} for place, key in enumerate(measures)},
        completions={"greedy_accuracy": 1, "avg_at_4": 4},
        questions={name: f"What is {name}?" for name in after},
        train_seconds=240.0 + source.uniform(-20, 20),
        total_seconds=300.0,
        processor_seconds=550.0,
        machine="a machine",
    )


def _metrics(step: int, steps: int, lift: float, source: random.Random) -> dict[str, float]:
    share = 1 - math.exp(-3 * step / steps)
    line: dict[str, float] = {"step": step, "seconds": 30 + 12.0 * step}
    if step % max(1, steps // 10) == 0:
        accuracy = 0.2 + lift * share + source.gauss(0, 0.012)
        line |= {"evaluation/accuracy": accuracy}
        line |= {"evaluation/accuracy_low": accuracy - 0.06, "evaluation/accuracy_high": accuracy + 0.06}
    if step:
        line |= {
            "train/entropy": 1.1 - 1.2 * lift * share + source.gauss(0, 0.04),
            "train/loss": 0.4 - 0.2 * share + source.gauss(0, 0.03),
            "train/grad_norm": 2 - share + source.gauss(0, 0.2),
            "rollout/pass_rate": 0.15 + lift * share + source.gauss(0, 0.03),
            "rollout/informative_share": 0.4 + 0.3 * share + source.gauss(0, 0.04),
            "rollout/answer_tokens": 20 - 9 * share + source.gauss(0, 1),
            "rollout/tokens_per_second": 330 + source.gauss(0, 9),
            "train/sampler_difference": 0.004 + abs(source.gauss(0, 0.001)),
            "train/tokens_per_second": 1450 + source.gauss(0, 30),
        }
    return line


def study(
    variants: Sequence[str] = ("nft", "rft"),
    seeds: Sequence[int] = (0, 1),
    *,
    steps: int = 20,
    problems: int = 120,
    margins: Mapping[str, float] | None = None,
) -> StudyResults:
    """All runs done; the first variant rises most, the second is the reference."""
    runs = tuple(
        run_result(variant, seed, 0.5 - 0.03 * number, steps=steps, problems=problems)
        for number, variant in enumerate(variants)
        for seed in seeds
    )
    return StudyResults(
        "a study", tuple(variants), tuple(seeds), variants[min(1, len(variants) - 1)], runs, dict(margins or {})
    )
