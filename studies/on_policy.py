"""How far apart the two runs of each pair in on_policy.yaml end: answers, metrics, weights.

    python studies/on_policy.py runs/on_policy

In exact arithmetic they are equal. In float32 the two losses of a pair may round differently; then weights differ in
their last digits, and a sampled token can, where many are hardly more probable than that. Another token is another run.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from safetensors.torch import load_file

from negaware.files import read_json_lines

PAIRS = {"nft-grpo": "grpo", "nft-one_minus_rate": "dr_grpo", "nft-maxrl": "maxrl"}
NOT_COMPARED = ("train/loss", "train/sampler_difference", "time/", "seconds", "_per_second")
"""A loss's size isn't its gradient's: NFT's is 0, its partner's a mean advantage. The sampler's difference is rounding
itself. Times are the machine's."""


def main(study: Path) -> None:
    """Prints a row a pair."""
    print("| pair | the same answers | metrics, at most | weights, at most | weights, root mean square |")
    print("|---|--:|--:|--:|--:|")
    for names in PAIRS.items():
        first, second = (study / "runs" / f"{name}-seed0" for name in names)
        answers = answers_of(first), answers_of(second)
        num_same = sum(one == other for one, other in zip(*answers, strict=False))
        metric, difference = largest_difference(first, second)
        largest, mean_square = weight_differences(first, second)
        print(
            f"| {names[0]}, {names[1]} | {num_same} of {max(map(len, answers))} | {difference:.1e} ({metric}) "
            f"| {largest:.1e} | {mean_square:.1e} |"
        )


def answers_of(run: Path) -> list[str]:
    """Every sampled answer that a step was offered, then every held-out one."""
    sampled = [row["answer"] for path in sorted((run / "answers").iterdir()) for row in read_json_lines(path)[0]]
    held_out = [row for path in sorted((run / "evaluations").glob("after-*.jsonl")) for row in read_json_lines(path)[0]]
    return sampled + [answer["text"] for row in held_out for answer in row["answers"]]


def largest_difference(first: Path, second: Path) -> tuple[str, float]:
    """The metric that differs most, and by how much of its size, over all steps."""
    worst, name_of_worst = 0.0, "none"
    lines = [read_json_lines(run / "metrics.jsonl")[0] for run in (first, second)]
    for one, other in zip(*lines, strict=True):
        for name in one.keys() & other.keys():
            if any(part in name for part in NOT_COMPARED):
                continue
            size = max(abs(one[name]), abs(other[name]))
            difference = abs(one[name] - other[name]) / size if size else 0.0
            if difference > worst:
                worst, name_of_worst = difference, name
    return name_of_worst, worst


def weight_differences(first: Path, second: Path) -> tuple[float, float]:
    """The largest difference of a weight, and the root of the mean square of all."""
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (first, second))
    differences = [weight.double().sub_(theirs[name]) for name, weight in ours.items()]
    mean_square = sum(float(each.square().sum()) for each in differences) / sum(each.numel() for each in differences)
    return max(float(each.abs().max()) for each in differences), math.sqrt(mean_square)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
