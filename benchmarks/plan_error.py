"""Memory as planned and as measured, here, without a GPU: `python benchmarks/plan_error.py [CASE …]`.

Each case is a process of its own, one after another. "autograd" is what is kept for the backward pass, byte by byte,
as autograd's hooks see it; "process" is how far the resident size grew at its peak, from before the model was there. A
step is a real one of the real trainer, of several ranks the one that took most; the last cases are two layers of the 7B
and 32B models at full width, forward and backward, the very last one on the longest row of the 32B recipe (a quarter of
an hour). Holes in the C library's heap are left out: they have no counterpart on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from memory import PeakMemory

ROOT = Path(__file__).parents[1]
MIB = 2**20
PROMPT = 64
ENVIRONMENT = {
    "GOMP_SPINCOUNT": "1000",  # as negaware's command line sets it
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536:glibc.malloc.mmap_max=10000000",
}
"""Every large block is a mapping of its own, which is given back when it is freed: no holes in the heap are counted."""


@dataclass(frozen=True)
class Case:
    """Rows of so many tokens in one micro-batch of a model; by the fused decoder, or by transformers' own code, in
    shards if there are several ranks."""

    model: str
    tokens: int
    rows: int = 1
    fused: bool = False
    recomputed: bool = False
    ranks: int = 1

    @property
    def title(self) -> str:
        path = f"{self.ranks} ranks" if self.ranks > 1 else "fused" if self.fused else "transformers"
        return f"{self.model}, {self.rows} × {self.tokens:,} tokens, {path}{', recomputed' * self.recomputed}"


@dataclass(frozen=True)
class Compared:
    """One figure of a case, bytes."""

    title: str
    what: str
    planned: int
    measured: int

    def __str__(self) -> str:
        error = self.planned / self.measured - 1
        return f"| {self.title} | {self.what} | {self.planned / MIB:,.0f} | {self.measured / MIB:,.0f} | {error:+.1%} |"


SMALL, MIDDLE = "SmolLM2-135M", "Qwen2-like, 0.3B"
CASES = {
    "fused_2k": Case(SMALL, 2048, fused=True),
    "kept_2k": Case(SMALL, 2048),
    "kept_rows": Case(SMALL, 512, rows=8),
    "recomputed_4k": Case(SMALL, 4096, recomputed=True),
    "recomputed_8k": Case(SMALL, 8192, recomputed=True),
    "recomputed_16k": Case(SMALL, 16384, recomputed=True),
    "two_ranks": Case(SMALL, 2048, ranks=2),
    "two_ranks_recomputed": Case(SMALL, 4096, recomputed=True, ranks=2),
    "three_ranks": Case(SMALL, 1024, ranks=3),
    "middle_fused": Case(MIDDLE, 2048, fused=True),
    "middle_kept": Case(MIDDLE, 2048),
    "layers_7b": Case("Qwen2.5-Math-7B", 2048),
    "layers_32b": Case("Qwen2.5-32B", 2048),
    "layers_32b_16k": Case("Qwen2.5-32B", 16384, recomputed=True),
}


def measure(case: Case) -> list[Compared]:
    """Planned and measured, in this process; of several ranks, on each."""
    if case.ranks > 1:
        return of_shards(case)
    return of_layers(case) if case.model.startswith("Qwen2.5") else of_a_step(case)


def of_a_step(case: Case) -> list[Compared]:
    """A small step, after which AdamW's moments are there, then the one that counts."""
    from negaware.models.decoder import TransformersDecoder
    from negaware.models.load import compute_dtype
    from negaware.models.network import make_ready
    from negaware.models.residual import keep_residual_float32
    from negaware.objectives import OBJECTIVES
    from negaware.planning.memory import memory
    from negaware.training.options import TrainingOptions
    from negaware.training.step import LossSettings, Trainer

    config, setting = model_config(case), setting_like(case)
    activations = "recomputed" if case.recomputed else "kept"
    options = TrainingOptions(optimizer_steps=1, micro_batch_tokens=case.rows * case.tokens, activations=activations)
    with PeakMemory() as peak:
        model = new_model(config, case)
        network = make_ready(model, compute_dtype(options.compute_dtype))
        if not case.fused:
            keep_residual_float32(model)
            network = replace(network, decoder=TransformersDecoder(model, False))
        trainer = Trainer(network, LossSettings(OBJECTIVES["nft"], {}, 1.0, case.tokens), options, 2)
        warm_up(trainer, 2, model.config.vocab_size)
        length = case.tokens - PROMPT + 1
        with kept_bytes(model, trainer) as kept:
            trainer.step([made_group(case.rows, length, model.config.vocab_size)], seed=0)
    planned = memory(setting)
    state = sum(moment.nbytes for own in trainer.optimizer.adamw.state.values() for moment in own.values())
    moments = next(size for name, size in planned.always.items() if "moments" in name)
    return [
        Compared(case.title, "autograd", planned_kept(setting), sum(kept.values())),
        Compared(case.title, "AdamW's moments", moments, state),
        *keys_and_values(case, model, trainer.decoder if case.fused else None),
        Compared(case.title, "process", planned.total("training"), peak.growth),
    ]


def warm_up(trainer: Any, num_answers: int, vocabulary: int) -> None:
    """A small step, which makes AdamW's moments; and gradients, as an earlier micro-batch of the next one leaves."""
    import torch

    trainer.step([made_group(num_answers, 2, vocabulary)], seed=0)
    for master in trainer.optimizer.masters.values():
        master.grad = torch.full_like(master, 0.0)


def of_shards(case: Case) -> list[Compared]:
    """The same two steps by several ranks, whose sampler is elsewhere. What loading takes at its peak isn't counted: it
    is the host's memory where ranks have GPUs."""
    import torch

    from negaware.models.load import load_sharded_policy
    from negaware.objectives import OBJECTIVES
    from negaware.planning.memory import memory
    from negaware.planning.setting import Sampler
    from negaware.ranks import joined_ranks
    from negaware.training.options import TrainingOptions
    from negaware.training.step import LossSettings, Trainer

    activations = "recomputed" if case.recomputed else "kept"
    options = TrainingOptions(optimizer_steps=1, micro_batch_tokens=case.rows * case.tokens, activations=activations)
    loss = LossSettings(OBJECTIVES["nft"], {}, 1.0, case.tokens)
    with joined_ranks() as ranks:
        with PeakMemory() as peak:
            policy = load_sharded_policy("smollm2-135m-instruct", ranks, "cpu", torch.bfloat16, False)
            vocabulary = policy.model.config.vocab_size
            trainer = Trainer(policy.network, loss, options, 2, ranks)
            warm_up(trainer, 2 * ranks.size, vocabulary)
            group = made_group(case.rows * ranks.size, case.tokens - PROMPT + 1, vocabulary)
            peak.forget()
            trainer.step([group], seed=0)
        grown = max(ranks.gather(peak.growth))
    planned = memory(replace(setting_like(case), sampler=Sampler("vllm_server"))).peak
    return [Compared(case.title, "process", planned, grown)] if ranks.is_first else []


def of_layers(case: Case) -> list[Compared]:
    """Forward and backward through two layers, in bfloat16, no head and no optimizer."""
    import torch

    from negaware.models.attention import use_own_attention
    from negaware.models.parallel import recompute_activations
    from negaware.models.residual import keep_residual_float32
    from negaware.planning.memory import activations

    config, setting = model_config(case), setting_like(case)
    with PeakMemory() as peak:
        model = new_model(config, case, torch.bfloat16)
        assert keep_residual_float32(model)
        assert use_own_attention(model)
        if case.recomputed:
            recompute_activations(model)
        for parameter in model.get_decoder().parameters():  # as after an earlier micro-batch
            parameter.grad = torch.full_like(parameter, 0.0)
        tokens = torch.randint(config.vocab_size, (case.rows, case.tokens))
        with kept_bytes(model, None) as kept:
            hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
        hidden.backward(torch.ones_like(hidden))
    weights = 2 * 2 * (setting.model.num_parameters - setting.model.head_parameters)
    within = sum(size for name, size in activations(setting).items() if "activations" in name or "between" in name)
    return [
        Compared(case.title + ", two layers", "autograd", planned_kept(setting), sum(kept.values()) + hidden.nbytes),
        Compared(case.title + ", two layers", "process", weights + within, peak.growth),
    ]


def planned_kept(setting: Any) -> int:
    """What is planned to be kept for the backward pass, with the last hidden states of the tokens that predict."""
    from negaware.planning.memory import activations

    return sum(size for name, size in activations(setting).items() if "activations" in name and "again" not in name)


def keys_and_values(case: Case, model: Any, fused: Any) -> Iterator[Compared]:
    """16 answers of 128 tokens to 4 questions, by the fused decoder's cache."""
    import torch

    from negaware.models.cpu.rows import RowDecoder
    from negaware.planning.memory import memory

    if fused is None:
        return
    rows = RowDecoder(fused)
    with torch.inference_mode():
        rows.begin(16, PROMPT, 128)
        rows.add_prompts([[5] * PROMPT] * 4, 4)
        for _ in range(127):
            rows.decode(torch.full((16,), 5))
    setting = replace(setting_like(case), completions=4, questions=4, max_sequences=16, answer_tokens=128)
    planned = next(size for name, size in memory(setting).moments["sampling"].items() if name.startswith("keys"))
    states = [*rows.prompt_states, *(part for block in rows.answer_states for part in block)]
    yield Compared(case.title, "keys and values of 16 answers", planned, sum(part.nbytes for part in states))


@contextmanager
def kept_bytes(model: Any, trainer: Any) -> Iterator[dict[int, int]]:
    """Bytes by storage of all that autograd is given to keep, weights apart."""
    import torch

    shapes = {parameter.shape for parameter in model.parameters()}
    for layer in getattr(trainer and trainer.decoder, "layers", ()):
        shapes |= {product.weight_and_bias()[0].shape for product in (layer.inputs, layer.gates)}
    kept: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        if tensor.shape not in shapes and tensor.shape[::-1] not in shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def model_config(case: Case) -> Any:
    from transformers import AutoConfig, Qwen2Config

    from negaware.models.embedded import embedded_model_folder

    if case.model == SMALL:
        return AutoConfig.from_pretrained(embedded_model_folder())
    if case.model == MIDDLE:
        sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "vocab_size": 32_000}
        heads = {"num_attention_heads": 16, "num_key_value_heads": 4, "tie_word_embeddings": False}
        return Qwen2Config(**sizes, **heads, max_position_embeddings=16_384)
    config = AutoConfig.from_pretrained(ROOT / "configs" / "models" / case.model)
    config.num_hidden_layers, config.vocab_size, config.layer_types = 2, 1024, config.layer_types[:2]
    return config


def new_model(config: Any, case: Case, dtype: Any = None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from negaware.models.load import load_model

    if case.model == SMALL:
        return load_model("smollm2-135m-instruct", torch.float32)[0]
    return AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32).eval()


def setting_like(case: Case) -> Any:
    """What the plan is told of the case."""
    import tempfile

    from negaware.config import parse_config
    from negaware.planning.setting import setting_of

    with tempfile.TemporaryDirectory() as folder:
        model_config(case).save_pretrained(folder)
        config = parse_config(
            {
                "model": folder,
                "task": "arithmetic",
                "rollout": {"max_new_tokens": case.tokens - PROMPT, "max_prompt_tokens": PROMPT},
                "training": {
                    "micro_batch_tokens": case.rows * case.tokens,
                    "activations": "recomputed" if case.recomputed else "kept",
                },
                "evaluation": {"task": "arithmetic:test", "final": {"max_new_tokens": 8}},
                "run": {"steps": 1},
            }
        )
        setting = setting_of(config, case.ranks, "cpu")
    setting.model.is_llama_like &= case.fused
    return setting


def made_group(num_answers: int, length: int, vocabulary: int) -> Any:
    """Answers of `length` tokens to one question, every other one right."""
    import random

    from negaware.types import Completion, Group, Problem, Verdict

    choose = random.Random(0)
    tokens = [tuple(choose.randrange(100, vocabulary) for _ in range(length)) for _ in range(num_answers)]
    completions = tuple(Completion.drawn(own, (-5.0,) * length, "stop", 0, seed) for seed, own in enumerate(tokens))
    verdicts = tuple(Verdict(index % 2 == 0, "correct" if index % 2 == 0 else "wrong") for index in range(num_answers))
    return Group(Problem("p", "?", "!"), tuple(range(100, 100 + PROMPT)), completions, ("",) * num_answers, verdicts)


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory as planned and as measured.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--here", action="store_true", help="one case, in this process, as JSON")
    options = parser.parse_args()
    names = options.cases or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"no case {unknown[0]!r}; known are {', '.join(CASES)}")
    if options.here:
        if compared := measure(CASES[names[0]]):
            print(json.dumps([asdict(one) for one in compared]))
        return
    print("| step | what | planned MiB | measured MiB | error |\n|---|---|---|---|---|")
    worst = 0.0
    for name in names:
        environment = ENVIRONMENT | os.environ
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(CASES[name].ranks)]
        command = [sys.executable, *(launcher if CASES[name].ranks > 1 else []), __file__, name, "--here"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr}")
        for one in (Compared(**data) for data in json.loads(done.stdout.splitlines()[-1])):
            print(one, flush=True)
            worst = max(worst, abs(one.planned / one.measured - 1))
    print(f"\nlargest error {worst:.1%}")


if __name__ == "__main__":
    main()
