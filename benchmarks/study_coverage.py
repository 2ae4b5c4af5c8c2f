"""How often a study's intervals hold the truth, and its verdicts err: `python benchmarks/study_coverage.py [trials]`.

Answers are drawn for made-up studies whose truth is known: pass rates of problems from a Beta distribution, on the
logit scale a normal effect of each seed, of each seed at each problem, and of the variant at each problem. What is
judged is the product's own code. It prints the tables of docs/studies.md; some ten minutes.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, expit, logit, stdtrit

from negaware.studies.components import (
    CrossedMean,
    crossed_change,
    crossed_mean,
    equivalence_p,
    interval,
    quantile,
    two_sided_p,
)
from negaware.studies.statistics import LEVEL, fraction_estimate, holm, improvement

NUM_SEEDS, NUM_PROBLEMS, NUM_ANSWERS = (3, 5, 10), (30, 100, 500), (1, 4, 32)
CELLS = 1_000_000  # at once: memory


@dataclass(frozen=True)
class Structure:
    """How pass rates come about; standard deviations and effect are on the logit scale."""

    shape: tuple[float, float] = (1, 1)
    seed: float = 0.0
    interaction: float = 0.0
    """Of a seed at a problem."""
    effect: float = 0.0
    """Of the variant, at every problem."""
    spread: float = 0.0
    """Of the variant's effect between problems."""
    flip: float = 0.0
    """The share of problems that the variant turns into their opposite."""
    collapse: float = 0.0
    """The share of the variant's seeds that fall by 3."""

    def truth(self, variant: bool) -> float:
        """The expected accuracy, by quadrature."""
        rates = logit(np.clip(betaincinv(*self.shape, (np.arange(4000) + 0.5) / 4000), 1e-12, 1 - 1e-12))
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        deviation = (self.seed**2 + self.interaction**2 + variant * self.spread**2) ** 0.5
        moved = rates[:, None] + deviation * nodes + variant * self.effect
        mean = expit(moved) + variant * self.collapse * (expit(moved - 3) - expit(moved))
        share = float((mean @ weights).mean() / weights.sum())
        return share + variant * self.flip * (1 - 2 * share)

    def rates(self, generator: np.random.Generator, size: tuple[int, int, int], variants: int = 1) -> list[np.ndarray]:
        """Pass rates [trials, seeds, problems] of the reference and of so many variants like one another."""
        trials, seeds, problems = size
        base = logit(np.clip(generator.beta(*self.shape, (trials, 1, problems)), 1e-12, 1 - 1e-12))
        made = []
        for variant in (False, *[True] * variants):
            moved = base + self.seed * generator.standard_normal((trials, seeds, 1))
            if variant:
                moved = moved - 3 * (generator.random((trials, seeds, 1)) < self.collapse)
                moved = moved + self.effect + self.spread * generator.standard_normal((trials, 1, problems))
            if self.interaction:
                moved = moved + self.interaction * generator.standard_normal(size)
            share = expit(moved)
            made.append(np.where(generator.random((trials, 1, problems)) < self.flip * variant, 1 - share, share))
        return made


STRUCTURES = {
    "chance alone": Structure(),
    "seeds 0.1": Structure(seed=0.1),
    "seeds 0.3": Structure(seed=0.3, interaction=0.5, effect=0.3),
    "seeds 1": Structure((0.3, 0.9), seed=1, interaction=0.5, effect=0.5),
    "U-shaped": Structure((0.2, 0.2), seed=0.1, interaction=0.5),
    "hard": Structure((0.3, 0.9), seed=0.2, interaction=0.5, effect=0.3, spread=0.5),
    "very hard": Structure((0.1, 2), seed=0.3, effect=0.5),
    "easy": Structure((5, 0.2), seed=0.2, effect=0.5),
    "flips": Structure((0.3, 0.7), flip=0.03),
    "problems 1": Structure((0.3, 0.7), seed=0.1, spread=1),
}


def answers(
    generator: np.random.Generator, structure: Structure, size: tuple[int, int, int], ks: tuple[int, ...], more: int = 1
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """The shares of right answers [trials, seeds, problems], of reference and variants, in parts and for each K."""
    trials, seeds, problems = size
    at_once = max(1, CELLS // (seeds * problems))
    for start in range(0, trials, at_once):
        rates = structure.rates(generator, (min(at_once, trials - start), seeds, problems), more)
        for k in ks:
            yield k, [generator.binomial(k, rate) / k for rate in rates]


def coverage(
    generator: np.random.Generator,
    structure: Structure,
    size: tuple[int, int, int],
    ks: tuple[int, ...] = NUM_ANSWERS,
) -> dict[int, tuple[float, float, float, float]]:
    """By K: the fraction of trials whose interval of the difference holds it, its mean width; then of the accuracy."""
    before, after = structure.truth(False), structure.truth(True)
    found: dict[int, list[np.ndarray]] = {k: [] for k in ks}
    for k, (first, last) in answers(generator, structure, size, ks):
        low, high = (np.clip(end, -1, 1) for end in interval(crossed_change(last - first)))
        single = np.array(accuracy_intervals(last, k)).T
        held = (low <= after - before + 1e-9) & (after - before - 1e-9 <= high)
        found[k].append(
            np.stack([held, high - low, (single[0] <= after) & (after <= single[1]), single[1] - single[0]])
        )
    return {k: tuple(np.concatenate(parts, axis=1).mean(1).tolist()) for k, parts in found.items()}  # type: ignore[misc]


def accuracy_intervals(shares: np.ndarray, k: int) -> list[tuple[float, float]]:
    """The product's interval of each trial's accuracy."""
    mean, sizes = crossed_mean(shares), [1] * shares.shape[2]
    each = zip(mean.value.tolist(), mean.variance.tolist(), quantile(mean, 0.025).tolist(), strict=True)
    made = (fraction_estimate(*one, sizes, shares[0].size * k) for one in each)
    return [(one.low, one.high) for one in made]  # type: ignore[misc]


def coverage_tables(trials: int) -> None:
    rows: dict[str, list[str]] = {"A paired difference": [], "An accuracy": []}
    for problems in NUM_PROBLEMS:
        for seeds in NUM_SEEDS:
            generator = np.random.default_rng((problems, seeds))
            every = {name: coverage(generator, one, (trials, seeds, problems)) for name, one in STRUCTURES.items()}
            for k in NUM_ANSWERS:
                for place, title in enumerate(rows):
                    results = {name: one[k][2 * place : 2 * place + 2] for name, one in every.items()}
                    rows[title].append(f"| {problems} | {seeds} | {k} | {_row(results)} |")
                    print(title, rows[title][-1], file=sys.stderr, flush=True)
    for title, lines in rows.items():
        _head(
            f"{title}, {trials:,} trials a case, {len(STRUCTURES)} structures",
            *("problems", "seeds", "answers", "lowest coverage", "of", "mean coverage", "mean width, points"),
        )
        print(*lines, sep="\n", flush=True)


def _head(title: str, *columns: str) -> None:
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'--:|' * len(columns)}")


def _row(results: dict[str, tuple[float, ...]]) -> str:
    worst = min(results, key=lambda name: results[name][0])
    coverages, widths = zip(*results.values(), strict=True)
    return f"{results[worst][0]:.1%} | {worst} | {np.mean(coverages):.1%} | {100 * np.mean(widths):.1f}"


Ends = tuple[np.ndarray, np.ndarray]


def satterthwaite(change: np.ndarray) -> Ends:
    """Satterthwaite's own degrees, without the two added problems."""
    mean = crossed_mean(change)
    free_a, free_b = mean.num_seeds - 1, mean.num_problems - 1
    spread = mean.seed**2 / free_a + mean.problem**2 / free_b + mean.left**2 / (free_a * free_b)
    half = stdtrit((mean.variance * mean.num_seeds * mean.num_problems) ** 2 / spread, 0.975) * np.sqrt(mean.variance)
    return mean.value - half, mean.value + half


def bootstrap(change: np.ndarray, resamples: int = 300) -> Ends:
    """Seeds and problems drawn anew, each with replacement; the percentiles of the mean."""
    generator = np.random.default_rng(0)
    _, seeds, problems = change.shape
    by_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    by_problem = generator.multinomial(problems, np.full(problems, 1 / problems), resamples) / problems
    means = np.stack([(one @ by_problem.T * by_seed.T).sum(0) for one in change])
    low, high = np.quantile(means, (0.025, 0.975), axis=1)
    return low, high


def seeds_alone(change: np.ndarray) -> Ends:
    """Student's interval of the seeds' means: the problems taken as all there are."""
    means, seeds = change.mean(2), change.shape[1]
    half = stdtrit(seeds - 1, 0.975) * means.std(1, ddof=1) / seeds**0.5
    return means.mean(1) - half, means.mean(1) + half


def problems_alone(change: np.ndarray) -> Ends:
    """Student's interval of the problems' means: the seeds taken as all there are."""
    return interval(crossed_mean(change.mean(1, keepdims=True)))


WAYS: dict[str, Callable[[np.ndarray], Ends]] = {
    "ours": lambda change: interval(crossed_change(change)),
    "Satterthwaite's degrees": satterthwaite,
    "crossed bootstrap": bootstrap,
    "seeds alone": seeds_alone,
    "problems alone": problems_alone,
}


def ways_table(trials: int) -> None:
    _head(
        f"Ways to make the interval of a difference, 4 answers a problem, {trials:,} trials a case",
        *("problems", "seeds", "way", "lowest coverage", "of", "mean coverage", "mean width, points"),
    )
    for problems, seeds in ((100, 3), (100, 10), (500, 3)):
        found: dict[str, dict[str, tuple[float, float]]] = {way: {} for way in WAYS}
        for name, structure in STRUCTURES.items():
            generator, truth = np.random.default_rng(problems + seeds), structure.truth(True) - structure.truth(False)
            parts = [
                last - first for _, (first, last) in answers(generator, structure, (trials, seeds, problems), (4,))
            ]
            for way, make in WAYS.items():
                low, high = np.concatenate([make(part) for part in parts], axis=1)
                found[way][name] = (float(np.mean((low <= truth) & (truth <= high))), float(np.mean(high - low)))
        for way, results in found.items():
            print(f"| {problems} | {seeds} | {way} | {_row(results)} |", flush=True)


def quantiles_table(trials: int) -> None:
    """Normal data, many ratios of the components, 500 problems: how often a test at a level errs, at most."""
    _head(
        f"Errors at most, normal data, {trials:,} trials a case",
        *("seeds", "level", "Satterthwaite's degrees", "ours", "wider by"),
    )
    for seeds, level in itertools.product(NUM_SEEDS, (0.05, 0.01)):
        free, errors, widths = (seeds - 1, 499), [], []
        for parts in itertools.product((0, 0.3, 1, 3, 8, 20, 100), (0, 1, 10), (0.001, 1)):
            generator = np.random.default_rng(seeds)
            squares, frees = [parts[0] + parts[2], parts[1] + parts[2], parts[2]], (*free, free[0] * free[1])
            a, b, e = (one * generator.chisquare(f, trials) / f for one, f in zip(squares, frees, strict=True))
            total = np.maximum(a, e) + np.maximum(b, e) - e
            degrees = total**2 / sum(one**2 / f for one, f in zip((a, b, e), frees, strict=True))
            mean = CrossedMean(a, total, np.minimum(a / total, 1), a, b, e, seeds, free[1] + 1)
            ends = np.stack([stdtrit(degrees, 1 - level / 2), quantile(mean, level / 2)]) * np.sqrt(total)
            errors.append((np.abs(generator.standard_normal(trials)) * sum(parts) ** 0.5 > ends).mean(1))
            widths.append(np.median(ends[1]) / np.median(ends[0]))
        his, ours = np.max(errors, axis=0)
        print(f"| {seeds} | {level:.0%} | {his:.1%} | {ours:.1%} | {np.mean(widths) - 1:.0%} |", flush=True)


def verdict_rates(
    generator: np.random.Generator, structure: Structure, size: tuple[int, int, int], k: int = 4
) -> tuple[float, ...]:
    """Of five variants alike: how often the first is called different, and any of them; "matches" the same.

    "matches" is with a margin at which all of them lie, so that it is always wrong.
    """
    margin, said = structure.truth(True) - structure.truth(False), []
    for _, (first, *others) in answers(generator, structure, size, (k,), more=5):
        means = [crossed_change(other - first) for other in others]
        differ = np.array([holm(row) for row in np.array([two_sided_p(mean) for mean in means]).T.tolist()]) < LEVEL
        alike = np.array([holm(row) for row in np.array([equivalence_p(mean, margin) for mean in means]).T.tolist()])
        said.append(np.stack([differ[:, 0], differ.any(1), alike[:, 0] < LEVEL, (alike < LEVEL).any(1)]))
    return tuple(np.concatenate(said, axis=1).mean(1).tolist())


def verdict_table(trials: int) -> None:
    _head(
        f"Verdicts on five variants alike and a reference, 4 answers a problem, {trials:,} trials a case",
        *("problems", "seeds", "deviation of seeds", "all equal, any called better or worse"),
        *("all at the margin, any said to match", "5 points better, found", "10 points better, found"),
    )
    for problems in NUM_PROBLEMS[1:]:
        for seeds in NUM_SEEDS:
            for deviation in (0.0, 0.2):
                generator, size = np.random.default_rng((problems, seeds)), (trials, seeds, problems)
                rates = [
                    verdict_rates(generator, Structure((0.5, 0.8), deviation, 0.5, effect), size)
                    for effect in (0.0, 0.3758, 0.7467)
                ]
                shown = (rates[0][1], rates[1][3], rates[1][0], rates[2][0])
                print(
                    f"| {problems} | {seeds} | {deviation} |",
                    " | ".join(f"{rate:.1%}" for rate in shown),
                    "|",
                    flush=True,
                )


def improvement_table(trials: int) -> None:
    """Runs' figures are normal, so the truth is that of two normal variables."""
    from scipy.special import ndtr

    _head(f"The probability of improvement, {trials:,} trials a case", "seeds", "true probability", "coverage")
    for seeds in NUM_SEEDS:
        generator = np.random.default_rng(seeds)
        for apart in (0.0, 1.0, 2.0):
            pairs = generator.standard_normal((trials, 2, seeds)) + np.array([apart, 0.0])[:, None]
            truth = float(ndtr(apart / 2**0.5))
            ends = [improvement(*pair) for pair in pairs.tolist()]
            held = np.mean([one.low <= truth <= one.high for one in ends])  # type: ignore[operator]
            print(f"| {seeds} | {truth:.1%} | {held:.1%} |", flush=True)


def collapse_table(trials: int) -> None:
    _head(
        f"The variant collapses in a seed of ten (falls by 3 on the logit scale), {trials:,} trials a case",
        *("problems", "seeds", "coverage of the difference", "coverage of the accuracy"),
    )
    for seeds in NUM_SEEDS:
        held = coverage(np.random.default_rng(seeds), Structure(seed=0.1, collapse=0.1), (trials, seeds, 100), (4,))[4]
        print(f"| 100 | {seeds} | {held[0]:.1%} | {held[2]:.1%} |", flush=True)


def main(trials: int) -> None:
    quantiles_table(20 * trials)
    improvement_table(trials)
    verdict_table(trials // 2)
    ways_table(trials // 2)
    collapse_table(trials // 2)
    coverage_tables(trials)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
