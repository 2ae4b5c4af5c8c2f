"""The evaluation of a finished model on a task, with the local engine."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from negaware.evaluation import evaluate as evaluation
from negaware.evaluation.evaluate import EvaluationResult
from negaware.evaluation.options import EvaluationSampling
from negaware.models.load import compute_dtype, load_policy, pick_device
from negaware.rollout.ask import Asker, Progress
from negaware.rollout.local import LocalEngine
from negaware.tasks.load import load_task
from negaware.tasks.options import parse_task
from negaware.tasks.task import Task


def evaluate(
    model: str | Path,
    task: str,
    *,
    samples: int = 1,
    temperature: float | None = None,
    max_new_tokens: int = 2048,
    num_problems: int | None = None,
    seed: int = 0,
    data_dir: Path | None = None,
) -> EvaluationResult:
    """avg@k, pass@k and maj@k of a model (a folder, a hub name) on a task as `negaware evaluate --task` names it.

    By default the temperature is 0 for one sample of each problem and 1 for more. ValueError for a model or task that
    can't be loaded, and for several samples at temperature 0.
    """
    if temperature == 0 and samples > 1:
        raise ValueError(
            f"temperature is 0 and samples is {samples}: all of them would be the same answer; take one sample or a "
            "temperature above 0."
        )
    if temperature is None:
        temperature = float(samples > 1)
    sampling = EvaluationSampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=1.0, top_k=0, completions=samples
    )
    loaded = load_task(parse_task(task), data_dir)
    try:
        return evaluate_on(replace(loaded, problems=loaded.problems[:num_problems]), str(model), sampling, seed)
    finally:
        loaded.verifier.close()


def evaluate_on(
    task: Task,
    model: str,
    sampling: EvaluationSampling,
    seed: int,
    dtype: str = "auto",
    device: str = "auto",
    counter: AbstractContextManager[Progress] | None = None,
) -> EvaluationResult:
    """As `evaluate`, on a loaded task; `counter` is entered when sampling begins."""
    torch.manual_seed(seed)
    place = pick_device(device)
    policy = load_policy(model, compute_dtype(dtype, place), place)
    asker = Asker(LocalEngine(policy.network), policy.codec.encode, policy.codec.decode)
    params = sampling.params(policy.codec.stop_token_ids, policy.max_tokens)
    with counter or nullcontext() as on_progress:
        return evaluation.evaluate(asker, task, params, sampling.completions, seed, on_progress)
