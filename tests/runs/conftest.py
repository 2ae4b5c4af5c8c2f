"""Synthetic runs, written through the run folder itself as training would."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from negaware.runs.folder import RunFolder

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'> \u2028 & &amp; ${1} \ud800"


def step_metrics(step: int, num_steps: int, lift: float, random_source: random.Random) -> dict[str, float]:
    share = 1 - 2.718 ** (-3 * step / num_steps)
    noise = random_source.uniform(-0.03, 0.03)
    pass_rate = 0.12 + lift * share + noise
    metrics = {
        "rollout/pass_rate": pass_rate,
        "rollout/informative_share": 0.35 + 0.4 * share + noise,
        "rollout/answer_tokens": 20 - 9 * share + 20 * noise,
        "rollout/tokens_per_second": 330 + 900 * noise,
        "train/loss": 0.4 - 0.2 * share + noise,
        "train/grad_norm": 2.0 - share + 8 * noise,
        "train/entropy": 1.1 - 0.8 * share + noise,
        "train/sampler_difference": 0.004 + abs(noise) / 10,
        "train/tokens_per_second": 1450 + 3000 * noise,
        "time/step": 8.0,
    }
    if step % 5 == 0:
        metrics |= evaluation(0.31 + lift * share * 0.7)
    return metrics


def evaluation(accuracy: float) -> dict[str, float]:
    return {
        "evaluation/accuracy": accuracy,
        "evaluation/accuracy_low": accuracy - 0.05,
        "evaluation/accuracy_high": accuracy + 0.05,
    }


def answer(step: int, group: int, number: int, random_source: random.Random) -> dict[str, Any]:
    left, right = random_source.randint(2, 12), random_source.randint(2, 12)
    reason = random_source.choice(["correct", "wrong", "wrong", "no_answer", "timeout"])
    hostile = HOSTILE if group == 0 and number == 0 else ""
    value = left + right + (reason != "correct")
    return {
        "step": step,
        "problem_id": f"sum-{step}-{group}",
        "question": f"What is {left} + {right}? Put your final answer within \\boxed{{}}. {hostile}",
        "gold": str(left + right),
        "answer": f"{left} plus {right} makes {value}, so the answer is \\boxed{{{value}}}. {hostile}",
        "correct": reason == "correct",
        "reason": reason,
        "extracted": None if reason == "no_answer" else str(value),
        "pass_rate": 0.375,
        "finish_reason": "length" if reason == "no_answer" else "stop",
        "num_tokens": 17,
        "trained": group % 2 == 0,
    }


def write_synthetic_run(
    path: Path, *, objective: str = "nft", lift: float = 0.6, num_steps: int = 20, num_groups: int = 4
) -> RunFolder:
    random_source = random.Random(path.name)
    config = {"objective": {"name": objective, "epsilon": 1.0}, "model": "smollm2", "seed": 0, "num_steps": num_steps}
    run = RunFolder.create(path, config)
    run.log(0, evaluation(0.31))
    for step in range(1, num_steps + 1):
        # The clock is set as if each step had taken eight seconds.
        run.log(step, step_metrics(step, num_steps, lift, random_source) | {"seconds": 30 + 24.0 * step})
        run.write_answers(
            step, [answer(step, group, k, random_source) for group in range(num_groups) for k in range(8)]
        )
    after = run.read_metrics()[-1]["evaluation/accuracy"]
    run.write_summary(
        {
            "before": {
                "greedy_accuracy": {"value": 0.31, "low": 0.26, "high": 0.36, "num_problems": 320},
                "avg_at_4": {"value": 0.11, "low": 0.09, "high": 0.13, "num_problems": 320},
            },
            "after": {
                "greedy_accuracy": {"value": after, "low": after - 0.05, "high": after + 0.05, "num_problems": 320},
                "avg_at_4": {"value": after - 0.07, "low": after - 0.11, "high": after - 0.03, "num_problems": 320},
            },
            "change": {
                "greedy_accuracy": {"value": after - 0.31, "low": after - 0.36, "high": after - 0.26},
                "avg_at_4": {"value": after - 0.18, "low": after - 0.22, "high": after - 0.14},
            },
            "train_seconds": 480.0,
            "total_seconds": 560.0,
            "steps": num_steps,
        }
    )
    return run


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """Writes a full synthetic run under the test's folder: name, then options of `write_synthetic_run`."""

    def write(name: str, **options: Any) -> RunFolder:
        return write_synthetic_run(tmp_path / name, **options)

    return write
