"""What answers weigh and what they cost between sampler and loss, where model, tokenizer and verifier take no time.

    python benchmarks/carrier.py
    torchrun --nproc-per-node 3 benchmarks/carrier.py

A step samples a million tokens in all, 64 questions of 16 answers, and trains on them. Bytes are what Python and numpy
hold after the sampling, on each rank; seconds are those of a step but for making the answers up.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from negaware.models.network import make_ready
from negaware.objectives import OBJECTIVES
from negaware.ranks import joined_ranks
from negaware.rollout.ask import Asker
from negaware.rollout.collect import Collector
from negaware.rollout.engine import Engine, Request, SamplingParams
from negaware.rollout.options import RolloutOptions
from negaware.tasks.task import Task
from negaware.training.options import TrainingOptions
from negaware.training.step import LossSettings, Trainer
from negaware.types import Completion, Problem, Verdict

QUESTIONS, ANSWERS, TOKENS, PROMPT, VOCABULARY = 64, 16, 1_000_000, 150, 150_000


class MadeUpEngine(Engine):
    """Answers of 1 to 1,952 tokens, 976 on average, by their seed; it keeps the time that making them up takes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.requests: list[Request] = []

    def submit(self, request: Request) -> None:
        self.requests.append(request)

    def step(self) -> int:
        start, num_tokens = time.perf_counter(), 0
        for request in self.requests:
            request.finished.extend(self._completion(draft.seed, request.params) for draft in request.drafts)
            request.drafts.clear()
            num_tokens += sum(done.num_tokens for done in request.finished)
        self.requests = []
        self.seconds += time.perf_counter() - start
        return num_tokens

    def _completion(self, seed: int, params: SamplingParams) -> Completion:
        choose = np.random.default_rng(seed)
        length = choose.integers(1, params.max_new_tokens, endpoint=True)
        token_ids = choose.integers(0, VOCABULARY, length, np.int32)
        return Completion.drawn(token_ids, -choose.random(length, np.float32), "stop", 0, seed)

    def withdraw(self, requests: Collection[Request] | None = None) -> list[Request]:
        return []

    def load_weights(self, named_weights: Iterable[Any], version: int) -> None: ...

    def sleep(self) -> None: ...


class EveryOther:
    """Calls every other answer right."""

    def grade(self, texts: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        return [Verdict(bool(place % 2), "correct" if place % 2 else "wrong") for place in range(len(texts))]

    def close(self) -> None: ...


class NoModelTrainer(Trainer):
    """Packs, exchanges and collates as ever; every token's log-probability is 0."""

    def logprobs(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        zeros = torch.zeros(len(batch.targets), requires_grad=True)
        return zeros, zeros.detach()


def main() -> None:
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    task = Task("made up", [Problem(str(n), "", "") for n in range(QUESTIONS)], "{question}", EveryOther())
    options = RolloutOptions(
        questions=QUESTIONS, completions=ANSWERS, max_new_tokens=2 * TOKENS // QUESTIONS // ANSWERS
    )
    with joined_ranks() as ranks:
        asker = Asker(MadeUpEngine(), lambda messages: list(range(PROMPT)), lambda token_ids: "", ranks)
        collector = Collector(asker, task, options.params((), 10**6), options, 0)
        loss = LossSettings(OBJECTIVES["nft"], {}, 1.0, options.max_new_tokens)
        training = TrainingOptions(compute_dtype="float32", optimizer_steps=1, micro_batch_tokens=8192)
        trainer = NoModelTrainer(make_ready(LlamaForCausalLM(config), torch.float32), loss, training, 100, ranks)
        for measure in (seconds_of_a_step, bytes_held):
            for line in ranks.gather(measure(collector, trainer, asker.engine)):
                if ranks.is_first:
                    print(line)


def seconds_of_a_step(collector: Collector, trainer: Trainer, engine: Any) -> str:
    """The least of five."""
    best = []
    for step in range(5):
        engine.seconds = 0.0
        start = time.perf_counter()
        groups = collector.next_rollout(step).groups
        sampled = time.perf_counter()
        trainer.step(groups, step)
        best.append((time.perf_counter() - start - engine.seconds, sampled - start - engine.seconds))
    whole, sampling = min(best)
    return f"rank {trainer.ranks.rank}: {whole:.2f} s a step, {sampling:.2f} of them around the sampling"


def bytes_held(collector: Collector, trainer: Trainer, engine: Any) -> str:
    """After a step's sampling."""
    gc.collect()
    tracemalloc.start()
    groups = collector.next_rollout(100).groups
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    done = [each for group in groups for each in group.completions]
    tokens = sum(each.num_tokens for each in done)
    own = sum(len(each.token_ids) for each in done)
    return f"rank {trainer.ranks.rank}: {held / 1e6:.1f} MB held, of {own:,} tokens of its own among {tokens:,}"


if __name__ == "__main__":
    main()
