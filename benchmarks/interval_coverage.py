"""How often 95 % intervals hold the truth, by simulation: `python benchmarks/interval_coverage.py`.

Problems have pass rates of their own, drawn from a Beta distribution, and K answers each; the truth is the mean of that
distribution. It prints the tables of docs/evaluation.md. Some five minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from negaware.estimates import Estimate, clustered_estimate, paired_change

Shape = tuple[float, float]
SHAPES: tuple[Shape, ...] = (
    *((1, 1), (20, 20), (2, 8)),  # even, in the middle, somewhat hard
    *((0.5, 0.5), (0.1, 0.1), (0.3, 0.7)),  # U-shaped: most problems always right or always wrong
    *((0.2, 2), (0.1, 2), (0.05, 0.95), (0.1, 10), (0.5, 20)),  # hard: means of 9, 5, 5, 1 and 2 %
    *((5, 0.2), (10, 0.1)),  # easy: 96 and 99 %
)
PAIRED_SHAPES: tuple[Shape, ...] = ((1, 1), (0.3, 0.7), (0.1, 2), (0.1, 10), (5, 0.2))
NUM_PROBLEMS, NUM_ANSWERS = (10, 30, 50, 100, 500), (1, 4, 32)

# How pass rates p change from before to after: the draw, and the mean change given the mean of p.
MOVES: dict[str, tuple[Callable[..., np.ndarray], Callable[[float], float]]] = {
    "same": (lambda generator, p, shape: p, lambda mean: 0.0),
    "fresh": (lambda generator, p, shape: generator.beta(*shape, p.shape), lambda mean: 0.0),
    "flip": (  # 3 % of the problems turn into their opposite
        lambda generator, p, shape: np.where(generator.random(p.shape) < 0.03, 1 - p, p),
        lambda mean: 0.03 * (1 - 2 * mean),
    ),
    "some": (  # a few problems gain much, most little
        lambda generator, p, shape: p + (1 - p) * generator.beta(0.2, 2, p.shape),
        lambda mean: (1 - mean) * 0.2 / 2.2,
    ),
    "learn": (lambda generator, p, shape: generator.beta(8, 0.3, p.shape), lambda mean: 8 / 8.3 - mean),
}


def single_coverage(
    generator: np.random.Generator,
    num_problems: int,
    num_answers: int,
    shape: Shape,
    trials: int,
    interval: Callable[..., Estimate] = clustered_estimate,
) -> tuple[float, float]:
    """The fraction of the trials whose interval holds the mean pass rate, and the intervals' mean width."""
    rates = generator.beta(*shape, (trials, num_problems))
    values = (generator.binomial(num_answers, rates) / num_answers).tolist()
    return _held([interval(row, num_answers) for row in values], shape[0] / sum(shape))


def paired_coverage(
    generator: np.random.Generator, num_problems: int, num_answers: int, shape: Shape, move: str, trials: int
) -> tuple[float, float]:
    """The same of the paired interval of a change."""
    draw, truth = MOVES[move]
    rates = generator.beta(*shape, (trials, num_problems))
    after = (generator.binomial(num_answers, draw(generator, rates, shape)) / num_answers).tolist()
    before = (generator.binomial(num_answers, rates) / num_answers).tolist()
    changes = [paired_change(first, last) for first, last in zip(before, after, strict=True)]
    return _held(changes, truth(shape[0] / sum(shape)))


def normal_interval(values: list[float], num_answers: int) -> Estimate:
    """What is usual, to compare with: mean ± 1.96 √(Σ (x − mean)² / n²)."""
    mean = float(np.mean(values))
    half = NormalDist().inv_cdf(0.975) * float(np.std(values)) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half)


def _held(estimates: list[Estimate], truth: float) -> tuple[float, float]:
    held = [one.low <= truth + 1e-12 and truth - 1e-12 <= one.high for one in estimates]  # type: ignore[operator]
    return float(np.mean(held)), float(np.mean([one.high - one.low for one in estimates]))  # type: ignore[operator]


def _row(results: dict[str, tuple[float, float]]) -> str:
    """The worst and the mean coverage, the worst one's name, the mean width in points."""
    worst = min(results, key=lambda name: results[name][0])
    coverages, widths = zip(*results.values(), strict=True)
    return f"{results[worst][0]:.1%} | {worst} | {np.mean(coverages):.1%} | {100 * np.mean(widths):.1f}"


TABLES: dict[str, Callable[[np.random.Generator, int, int, int], dict[str, tuple[float, float]]]] = {
    "A figure": lambda generator, n, k, trials: {
        f"Beta{shape}": single_coverage(generator, n, k, shape, trials) for shape in SHAPES
    },
    "A figure, mean ± 1.96 standard errors": lambda generator, n, k, trials: {
        f"Beta{shape}": single_coverage(generator, n, k, shape, trials, normal_interval) for shape in SHAPES
    },
    "A change, paired": lambda generator, n, k, trials: {
        f"Beta{shape}, {move}": paired_coverage(generator, n, k, shape, move, trials)
        for shape in PAIRED_SHAPES
        for move in MOVES
    },
}


def main(trials: int) -> None:
    for title, simulated in TABLES.items():
        print(f"\n{title}, {trials:,} trials a case\n")
        print("| problems | answers | lowest coverage | of | mean coverage | mean width, points |")
        print("|--:|--:|--:|---|--:|--:|")
        for n in NUM_PROBLEMS:
            for k in NUM_ANSWERS:
                generator = np.random.default_rng((n, k))  # a row doesn't depend on those before it
                print(f"| {n} | {k} | {_row(simulated(generator, n, k, trials))} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
