"""The parts of a config, and of the machines, that decide memory and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from negaware.config import Config
from negaware.models.load import compute_dtype
from negaware.planning.model import ModelShape
from negaware.rollout.options import VLLMOptions, require_split_heads

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Machine:
    """A GPU's data sheet, and the fraction of it that is reached. Defaults: an H100 (SXM, dense bfloat16)."""

    memory: int = 80 * GIB
    """Bytes."""
    operations: float = 989e12
    """Operations a second."""
    bandwidth: float = 3.35e12
    """Bytes a second of the GPU's memory."""
    network: float = 40e9
    """Bytes a second between GPUs that are reached: a network of 400 Gb/s a GPU gives about 40 GB/s."""
    efficiency: float = 0.4
    """The fraction of operations and bandwidth that is reached."""

    @property
    def usable(self) -> int:
        """Bytes for the plan: nine tenths. CUDA, communication buffers and fragmentation need the rest."""
        return self.memory * 9 // 10


@dataclass(frozen=True, slots=True)
class Sampler:
    """The engine: local; vLLM in the trainer's process, which frees its memory for training; or a vLLM server, which
    has other GPUs."""

    name: Literal["local", "vllm", "vllm_server"] = "local"
    tensor_parallel: int = 1
    """GPUs over which one copy of the weights, and its keys and values, is split."""
    cache: int | None = None
    """Bytes of a GPU for vLLM's keys and values; None: what the plan leaves, or see takes_half."""
    takes_half: bool = False
    """Whether vLLM takes half of a GPU for weights, keys and values, as it does if the config doesn't say."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The values of a run that the plan needs."""

    model: ModelShape
    ranks: int
    """Processes, one a GPU; several shard the model with FSDP2."""
    device: str
    itemsize: int
    """Bytes of the compute dtype."""
    activations: str
    offload: str
    micro_batch_tokens: int
    max_sequences: int
    sampler: Sampler
    questions: int
    completions: int
    optimizer_steps: int
    steps: int
    prompt_tokens: int
    """The longest question; 0 if the config sets no limit: then questions aren't counted."""
    answer_tokens: int
    """The longest answer."""
    extra_passes: int
    """Forward passes besides the one of training: for π_old, and for an objective that sees whole groups."""

    @property
    def is_fused(self) -> bool:
        """Whether models/cpu/decoder.py trains, instead of transformers' code."""
        return self.device == "cpu" and self.ranks == 1 and self.model.is_llama_like

    @property
    def longest(self) -> int:
        """Tokens of the longest answer with its question."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def tokens_at_once(self) -> int:
        """Tokens of the largest micro-batch: a row longer than the limit is one micro-batch."""
        return max(self.micro_batch_tokens, self.longest)

    @property
    def engines(self) -> int:
        """Copies of the model that sample."""
        return self.ranks // self.sampler.tensor_parallel

    @property
    def sequences_an_engine(self) -> int:
        """Answers that one engine samples in a step, if every question is informative."""
        return -(-self.questions * self.completions // self.engines)


def setting_of(config: Config, ranks: int, device: str) -> Setting:
    """The plan's part of a config. ValueError if the model's config can't be read, or its heads can't be split."""
    rollout, training = config.rollout, config.training
    model, sampler = ModelShape(config), sampler_of(config)
    require_split_heads(sampler.tensor_parallel, model.num_heads, model.num_key_heads)
    return Setting(
        model=model,
        ranks=ranks,
        device=device,
        itemsize=compute_dtype(training.compute_dtype, device).itemsize,
        activations=training.activations,
        offload=training.offload,
        micro_batch_tokens=training.micro_batch_tokens,
        max_sequences=rollout.max_sequences,
        sampler=sampler,
        questions=rollout.questions,
        completions=rollout.completions,
        optimizer_steps=training.optimizer_steps,
        steps=config.run.steps,
        prompt_tokens=rollout.max_prompt_tokens or 0,
        answer_tokens=rollout.max_new_tokens,
        extra_passes=(training.old_logprobs == "recomputed") + config.objective.entry.sees_groups,
    )


def sampler_of(config: Config) -> Sampler:
    """The config's engine."""
    engine = config.rollout.engine
    if not isinstance(engine, VLLMOptions):
        return Sampler(engine.name)
    cache = None if engine.cache_gib is None else int(engine.cache_gib * GIB)
    return Sampler(engine.name, engine.tensor_parallel, cache, takes_half=cache is None)
