"""negaware itself, through its public entry points: whole steps, sampling alone, training alone."""

from __future__ import annotations

import time
from typing import Any

import torch
from channel import Channel, Command, Measurement
from limit import ProductTimes, limit_seconds
from memory import memory_and_time
from work import CONFIG, MODEL, TRAINING_SHAPES

import negaware
from contenders.rollouts import synthetic_groups
from negaware.config import load_config
from negaware.models.cpu.memory import keep_freed_memory
from negaware.models.load import load_policy
from negaware.objectives import OBJECTIVES
from negaware.rollout.engine import SamplingParams
from negaware.rollout.local import LocalEngine
from negaware.tasks.options import BOXED_PROMPT
from negaware.tasks.task import Task
from negaware.training.options import TrainingOptions
from negaware.training.step import LossSettings, Trainer
from negaware.types import Completion, Group, Problem
from negaware.verifiers.math import MathVerifier


class Ours:
    """The policy with its engine, trainer and verifier, as `negaware train configs/demo.yaml` sets them up."""

    def __init__(self, work: dict[str, Any]) -> None:
        self.work = work
        config = load_config(CONFIG, [])
        shared = {"optimizer_steps": work["optimizer_steps"], "learning_rate": work["learning_rate"]}
        self.options = TrainingOptions.model_validate(
            config.training.model_dump() | shared | {"schedule": "constant", "compute_dtype": "bfloat16"}
        )
        policy = load_policy(MODEL, torch.bfloat16, "cpu", trained=True)
        self.codec, self.model = policy.codec, policy.model
        longest = max(map(int, work["questions"]), default=512)
        self.loss = LossSettings(OBJECTIVES["nft"], {}, temperature=1.0, max_answer_tokens=longest)
        self.trainer = Trainer(policy.network, self.loss, self.options, num_steps=1_000_000)
        self.engine = LocalEngine(policy.network, config.rollout.max_sequences)
        # The demo's own task: the last number counts, and an answer that was cut off is wrong.
        self.task = Task("benchmark", [], BOXED_PROMPT, MathVerifier(extract=("last_number",)))
        self.num_calls = 0
        self.products: ProductTimes | None = None
        self.last: list[Group] = []

    def answer(self, command: Command) -> Measurement:
        """What the command's `do` names."""
        self.num_calls += 1
        return getattr(self, command["do"])(command)

    def sample(self, command: Command) -> Measurement:
        """One rollout's answers."""
        start = time.perf_counter()
        groups = self._completions(command["limit"])
        return _sampling(groups, time.perf_counter() - start)

    def step(self, command: Command) -> Measurement:
        """Sample, verify, train on every group (with `informative_only`, on those whose answers differ)."""
        start = time.perf_counter()
        completions = self._completions(command["limit"])
        sampled = time.perf_counter()
        groups = self._graded(command["limit"], completions)
        graded = time.perf_counter()
        kept = [group for group in groups if 0 < group.pass_rate < 1] if command.get("informative_only") else groups
        metrics = self.trainer.step(kept, seed=self.num_calls) if kept else {"train/num_tokens": 0.0}
        end = time.perf_counter()
        measured = _sampling(completions, end - start)
        if not command.get("informative_only"):
            assert metrics["train/num_tokens"] == measured["tokens"], "some answers were not trained on"
            self.last = groups
        return measured | {
            "sampling_seconds": sampled - start,
            "grading_seconds": graded - sampled,
            "training_seconds": end - graded,
            "pass_rate": sum(group.pass_rate for group in groups) / len(groups),
            "trained_groups": len(kept),
            "logprob_difference": metrics.get("train/sampler_difference", 0.0),
        }

    def limit(self, command: Command) -> Measurement:
        """The matrix products' time of the last whole step, measured now."""
        self.products = self.products or ProductTimes(self.model)
        self.products.measure()
        return limit_seconds(self.products, self.last)

    def train(self, command: Command) -> Measurement:
        """Trains on made-up answers of the lengths that `shape` names."""
        shape = TRAINING_SHAPES[command["shape"]]
        groups = synthetic_groups(shape, self.work["num_completions"], self.model.config.vocab_size)
        self.trainer.options = self.options.model_copy(update={"optimizer_steps": shape["steps"]})
        metrics, measured = memory_and_time(lambda: self.trainer.step(groups, seed=0))
        self.trainer.options = self.options
        return {"tokens": metrics["train/num_tokens"], "loss": metrics["train/loss"]} | measured

    def _completions(self, limit: int) -> list[tuple[Completion, ...]]:
        prompts = [question["prompt_ids"] for question in self.work["questions"][str(limit)]]
        params = SamplingParams(limit, stop_token_ids=tuple(self.work["stop_token_ids"]))
        return self.engine.generate(prompts, self.work["num_completions"], params, seed=self.num_calls)

    def _graded(self, limit: int, completions: list[tuple[Completion, ...]]) -> list[Group]:
        asked = self.work["questions"][str(limit)]
        problems = [Problem(question["id"], question["question"], question["answer"]) for question in asked]
        texts = [
            tuple(self.codec.decode(completion.token_ids.tolist()) for completion in group) for group in completions
        ]
        verdicts = iter(
            self.task.grade(
                [text for group in texts for text in group],
                [problem for problem, group in zip(problems, texts, strict=True) for _ in group],
                [completion.finish_reason for group in completions for completion in group],
            )
        )
        return [
            Group(problem, tuple(question["prompt_ids"]), group, group_texts, tuple(next(verdicts) for _ in group))
            for problem, question, group, group_texts in zip(problems, asked, completions, texts, strict=True)
        ]


def _sampling(groups: list[tuple[Completion, ...]], seconds: float) -> Measurement:
    tokens = sum(completion.num_tokens for group in groups for completion in group)
    answers = sum(len(group) for group in groups)
    return {"seconds": seconds, "tokens": tokens, "answers": answers, "tokens_per_second": tokens / seconds}


def serve(channel: Channel, work: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Answers `{"do": "sample" | "step" | "limit" | "train" …}`."""
    import transformers

    keep_freed_memory()  # as negaware's command line does
    ours = Ours(work)
    versions = {
        "negaware": negaware.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if work["questions"]:
        ours.step({"limit": min(map(int, work["questions"]))})
    try:
        channel.answer_all({"versions": versions}, ours.answer)
    finally:
        ours.task.verifier.close()
