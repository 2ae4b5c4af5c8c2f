"""What of a config, and of the machines it is to run on, decides memory and time. It knows no arithmetic of either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from negaware.config import Config
from negaware.models.load import compute_dtype
from negaware.planning.model import ModelShape, model_shape
from negaware.rollout.options import VLLMOptions

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Machine:
    """A GPU by its data sheet, and what of that is reached. The defaults are an H100's (SXM, dense bfloat16)."""

    memory: int = 80 * GIB
    """Bytes."""
    operations: float = 989e12
    """A second."""
    bandwidth: float = 3.35e12
    """Bytes a second, of its own memory."""
    network: float = 40e9
    """Bytes a second to other GPUs, as they arrive (400 Gb/s a GPU give about that)."""
    efficiency: float = 0.4
    """The part of operations and bandwidth that is reached."""

    @property
    def usable(self) -> int:
        """Bytes that may be planned with: nine tenths, the rest for CUDA, communication buffers and fragmentation."""
        return self.memory * 9 // 10


@dataclass(frozen=True, slots=True)
class Sampler:
    """What samples: the local engine; vLLM in the trainer's process, which gives its memory back for training; or a
    server, which has GPUs of its own."""

    name: Literal["local", "vllm", "vllm_server"] = "local"
    tensor_parallel: int = 1
    """GPUs that share one copy of the weights and one set of keys and values."""
    cache: int | None = None
    """Bytes of a GPU that vLLM keeps for keys and values; none: what the plan leaves it, or half of the GPU."""
    takes_half: bool = False
    """Whether vLLM takes half of a GPU, weights counted, as it does where a config says nothing."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A run as the plan sees it."""

    model: ModelShape
    ranks: int
    """Processes, one a GPU: sharded by FSDP2 where there are several."""
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
    """At most; 0 where the config sets no limit: then questions aren't counted."""
    answer_tokens: int
    """At most."""
    extra_passes: int
    """Forward passes beside the one that trains: for π_old, and for an objective that sees groups whole."""

    @property
    def is_fused(self) -> bool:
        """Whether models/cpu/decoder.py trains, rather than transformers' own code."""
        return self.device == "cpu" and self.ranks == 1 and self.model.is_llama_like

    @property
    def longest(self) -> int:
        """Tokens of the longest answer with its question."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def tokens_at_once(self) -> int:
        """Tokens of the largest micro-batch: a row longer than the limit stands alone."""
        return max(self.micro_batch_tokens, self.longest)

    @property
    def engines(self) -> int:
        """Copies of the model that sample."""
        return self.ranks // self.sampler.tensor_parallel

    @property
    def sequences_an_engine(self) -> int:
        """Answers that one of them samples in a step, if every question is informative."""
        return -(-self.questions * self.completions // self.engines)


def setting_of(config: Config, ranks: int, device: str) -> Setting:
    """The plan's view of a config. ValueError if the model's config can't be had."""
    rollout, training = config.rollout, config.training
    return Setting(
        model=model_shape(config),
        ranks=ranks,
        device=device,
        itemsize=compute_dtype(training.compute_dtype, device).itemsize,
        activations=training.activations,
        offload=training.offload,
        micro_batch_tokens=training.micro_batch_tokens,
        max_sequences=rollout.max_sequences,
        sampler=sampler_of(config),
        questions=rollout.questions,
        completions=rollout.completions,
        optimizer_steps=training.optimizer_steps,
        steps=config.run.steps,
        prompt_tokens=rollout.max_prompt_tokens or 0,
        answer_tokens=rollout.max_new_tokens,
        extra_passes=(training.old_logprobs == "recomputed") + config.objective.entry.sees_groups,
    )


def sampler_of(config: Config) -> Sampler:
    """The engine's part of the plan."""
    engine = config.rollout.engine
    if not isinstance(engine, VLLMOptions):
        return Sampler(engine.name)
    cache = None if engine.cache_gib is None else int(engine.cache_gib * GIB)
    return Sampler(engine.name, engine.tensor_parallel, cache, takes_half=cache is None)
