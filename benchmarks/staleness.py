"""What `rollout.max_staleness` gains where answers have a long tail of lengths: seconds a step, full decode batches.

    python benchmarks/staleness.py                         # the local engine
    python benchmarks/staleness.py --untied FOLDER         # writes a copy of the model with a head of its own
    python benchmarks/staleness.py --model FOLDER --url http://127.0.0.1:8000  # a vLLM server that serves that copy

SmolLM2 explains sums in answers of at most 512 tokens, all of which are trained on (`filter: none`), and the weights
are handed over after every step. With the local engine the settings take turns, a step each; the first step of each is
left out, for it begins what the others find under way. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from negaware.models.cpu.memory import keep_freed_memory
from negaware.models.load import load_policy
from negaware.models.parallel import named_weights
from negaware.objectives import OBJECTIVES
from negaware.rollout.ask import Asker
from negaware.rollout.collect import Collector
from negaware.rollout.local import LocalEngine
from negaware.rollout.options import RolloutOptions
from negaware.rollout.vllm_server import VLLMServerEngine
from negaware.tasks.load import load_task
from negaware.tasks.options import ArithmeticOptions
from negaware.training.options import TrainingOptions
from negaware.training.step import LossSettings, Trainer

PROMPT = "{question} Explain every step of the calculation in words, then give the answer."


class CountingEngine(LocalEngine):
    """Counts decode steps, and those in which no row was free for another question."""

    decode_steps = full_steps = 0

    def step(self) -> int:
        """See `Engine.step`."""
        rows = 0 if self.batch is None else len(self.batch.sequences)
        num_tokens = super().step()
        if rows and num_tokens == rows:
            self.decode_steps += 1
            self.full_steps += rows > self.max_sequences - self.num_completions
        return num_tokens


class Run:
    """A policy with its sampler and trainer, at one staleness."""

    def __init__(self, arguments: argparse.Namespace, max_staleness: int, folder: Path) -> None:
        self.name, self.step_number = str(max_staleness), 0
        policy = load_policy(arguments.model, torch.float32, "cpu", trained=True)
        options = RolloutOptions(
            questions=arguments.questions,
            completions=arguments.completions,
            max_new_tokens=arguments.tokens,
            max_sequences=arguments.max_sequences,
            max_staleness=max_staleness,
            filter="none",
        )
        training = TrainingOptions(optimizer_steps=1, learning_rate=1e-6, compute_dtype="float32")
        loss = LossSettings(OBJECTIVES["nft"], {}, 1.0, options.max_new_tokens)
        self.trainer = Trainer(policy.network, loss, training, 1000, questions=options.questions)
        self.engine: Any
        if arguments.url:
            vocabulary = int(policy.model.config.vocab_size)
            self.engine = VLLMServerEngine([arguments.url], folder, vocabulary, False, options.max_sequences)
        else:
            self.engine = CountingEngine(policy.network, options.max_sequences)
            self.engine.num_completions = options.completions
        task = load_task(ArithmeticOptions(prompt=PROMPT))
        codec = policy.codec
        asker = Asker(self.engine, codec.encode, codec.decode)
        self.collector = Collector(asker, task, options.params(codec.stop_token_ids, policy.max_tokens), options, 0)
        self.weights = lambda: named_weights(policy.model, torch.float32) if arguments.url else ()
        self.measured: list[dict[str, float]] = []

    def step(self) -> None:
        """Weights, answers, an update; what it took."""
        start, before = time.perf_counter(), getattr(self.engine, "decode_steps", 0)
        full_before = getattr(self.engine, "full_steps", 0)
        self.engine.load_weights(self.weights(), self.step_number)
        self.step_number += 1
        rollout = self.collector.next_rollout(self.step_number)
        sampled = time.perf_counter()
        trained = self.trainer.step(rollout.groups, self.step_number)
        end = time.perf_counter()
        self.measured.append(
            {
                "seconds": end - start,
                "sampling": sampled - start,
                "tokens": trained["train/num_tokens"],
                "decode_steps": getattr(self.engine, "decode_steps", 0) - before,
                "full_steps": getattr(self.engine, "full_steps", 0) - full_before,
            }
            | {name: rollout.metrics[f"rollout/{name}"] for name in ("staleness_mean", "staleness_max")}
            | {"dropped": rollout.metrics.get("rollout/num_dropped_tokens", 0.0)}
        )

    def result(self) -> dict[str, float]:
        """Over all steps but the first."""
        steps = self.measured[1:]
        total = {name: sum(step[name] for step in steps) for name in steps[0]}
        return {
            "seconds_a_step": statistics.median(step["seconds"] for step in steps),
            "trained_tokens_a_second": total["tokens"] / total["seconds"],
            "sampling_share": total["sampling"] / total["seconds"],
            "full_share": total["full_steps"] / max(total["decode_steps"], 1),
            "staleness_mean": total["staleness_mean"] / len(steps),
            "staleness_max": max(step["staleness_max"] for step in steps),
            "dropped_share": total["dropped"] / total["tokens"],
        }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=5, help="of each, besides the first")
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--completions", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--max-sequences", type=int, default=16)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--url")
    parser.add_argument("--untied", type=Path, help="only writes the copy, to this folder")
    options = parser.parse_args(arguments)
    if options.untied:
        write_untied(options.model, options.untied)
        return
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        runs = [Run(options, staleness, Path(folder)) for staleness in options.staleness]
        # A server would go on for one while another is measured: there they don't take turns.
        order = (
            runs * (options.steps + 1) if not options.url else [run for run in runs for _ in range(options.steps + 1)]
        )
        for number, run in enumerate(order, 1):
            run.step()
            if number == len(order) or (options.url and order[number] is not run):
                run.engine.withdraw()
            print(f"staleness {run.name}, step {run.step_number}: {run.measured[-1]['seconds']:.1f} s", flush=True)
    results = {run.name: run.result() for run in runs}
    for name, result in results.items():
        print(f"staleness {name}: " + ", ".join(f"{key} {value:.3g}" for key, value in result.items()))
    print(json.dumps(results))


def write_untied(model: str, folder: Path) -> None:
    """A copy whose head is a matrix of its own: vLLM's CPU server refuses a tied one."""
    policy = load_policy(model, torch.float32, "cpu")
    head, embedding = policy.model.get_output_embeddings(), policy.model.get_input_embeddings()
    head.weight = nn.Parameter(embedding.weight.detach().clone())
    policy.model.config.tie_word_embeddings = False
    policy.model.save_pretrained(folder)
    policy.codec.tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
