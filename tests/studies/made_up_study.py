"""Studies made up of numbers, for what is computed from them."""

from collections.abc import Callable, Mapping, Sequence

from negaware.studies.results import RunResult, StudyResults


def run_result(
    variant: str, seed: int, shares: Sequence[float], questions: Sequence[str] | None = None, **changed: object
) -> RunResult:
    """A run whose problems p0, p1 … were right in these shares of 4 answers, both measures alike."""
    problems = {f"p{index}": share for index, share in enumerate(shares)}
    values: dict[str, object] = {
        "config_hash": variant,
        "steps": 20,
        "metrics": tuple(
            {
                "step": float(step),
                "train/entropy": 1.0 / (step + 1) + 0.01 * seed,
                "rollout/answer_tokens": 20.0 + step,
                "rollout/informative_share": 0.5 + 0.01 * seed,
                **({"evaluation/accuracy": 0.1 + 0.01 * step + 0.01 * seed} if step % 10 == 0 else {}),
            }
            for step in range(21)
        ),
        "before": {"avg_at_4": dict.fromkeys(problems, 0.25)},
        "after": {"avg_at_4": problems},
        "completions": {"avg_at_4": 4},
        "questions": dict(zip(problems, questions or list(problems), strict=True)),
        "train_seconds": 60.0 + seed,
        "total_seconds": 90.0,
        "processor_seconds": 100.0 + 10 * seed,
    }
    return RunResult(variant, seed, **(values | changed))  # type: ignore[arg-type]


def study(
    tables: Mapping[str, Sequence[Sequence[float]]],
    *,
    seeds: Mapping[str, Sequence[int]] | None = None,
    questions: Sequence[str] | None = None,
    margins: Mapping[str, float] | None = None,
    made: Callable[..., RunResult] = run_result,
) -> StudyResults:
    """A study from each variant's table [seeds, problems]; the first variant is the reference."""
    names = tuple(tables)
    runs = [
        made(name, seed, row, questions)
        for name, table in tables.items()
        for seed, row in zip((seeds or {}).get(name, range(len(table))), table, strict=True)
    ]
    every = tuple(sorted({run.seed for run in runs}))
    return StudyResults("made up", names, every, names[0], tuple(runs), margins or {})
