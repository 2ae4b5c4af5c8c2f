"""What can be set about sampling for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from negaware.rollout.engine import SamplingParams
from negaware.validation import Options, listed, named


class SamplingOptions(Options):
    """How tokens are drawn."""

    max_new_tokens: int = Field(3584, ge=1)
    """Longest answer, in tokens, stop token included; less where the prompt leaves less room in the model, counted."""
    temperature: float = Field(1.0, ge=0, le=2)
    """Sampling temperature; 0 is greedy, and vLLM goes no higher than 2."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus mass; 1 leaves the distribution whole."""
    top_k: int = Field(0, ge=0)
    """Highest-probability tokens kept; 0 keeps all."""

    def params(self, stop_token_ids: tuple[int, ...], max_tokens: int) -> SamplingParams:
        """These options with the tokenizer's stop tokens and the model's longest sequence."""
        return SamplingParams(self.max_new_tokens, self.temperature, self.top_p, self.top_k, stop_token_ids, max_tokens)


class LocalOptions(Options):
    """The engine in PyTorch: it samples with the model that is trained, or on several ranks with a copy on each."""

    name: Literal["local"] = "local"


class VLLMOptions(Options):
    """vLLM in the trainer's process: one engine a rank, or one for some neighbouring ranks together."""

    name: Literal["vllm"] = "vllm"
    tensor_parallel: int = Field(default=1, ge=1)
    """Ranks that share an engine, each with a part of every weight: for a model that one GPU can't hold."""
    cache_gib: float | None = Field(default=None, gt=0)
    """GiB of keys and values a rank keeps; by default what is left of half a GPU beside the weights, 1 on a CPU."""


def require_split_heads(tensor_parallel: int, num_heads: int, num_key_heads: int) -> None:
    """ValueError unless the model's attention heads can be divided among so many ranks, as vLLM divides them."""
    splits = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
    shared = [n for n in splits if num_key_heads % n == 0 or n % num_key_heads == 0]
    if tensor_parallel not in shared:
        raise ValueError(
            f"rollout.engine.tensor_parallel is {tensor_parallel}, but the model's {num_heads} attention heads "
            f"({num_key_heads} with keys) can be shared by {', '.join(map(str, shared))} ranks only."
        )


class VLLMServerOptions(Options):
    """A vLLM server on this machine or others, which is started apart (docs/sampling.md says how)."""

    name: Literal["vllm_server"] = "vllm_server"
    url: Annotated[tuple[str, ...], BeforeValidator(listed)] = Field(min_length=1)
    """Where it listens, such as http://node7:8000; or a list, of servers that share the requests."""
    shared_folder: Path | None = None
    """A folder that trainer and server both see, for handing over weights; by default `weights` in the run's folder."""
    api_key_env: str | None = Field(default=None, min_length=1)
    """The name of the environment variable that holds the server's API key, so that no config holds the key itself."""

    @field_validator("url")
    @classmethod
    def _can_be_called(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            try:
                parts = urlsplit(url)
                fits = parts.scheme in ("http", "https") and parts.path in ("", "/") and parts.port != 0
                fits = fits and bool(parts.hostname) and url.isascii() and url.isprintable() and " " not in url
            except ValueError:  # a port beyond 65535, a bracket left open
                fits = False
            if not fits or "@" in url or parts.query or parts.fragment:
                raise ValueError(
                    f"url is {url!r}; write http:// or https://, the host's name and its port, and no more"
                )
        if len({url.rstrip("/") for url in urls}) < len(urls):
            raise ValueError(f"url names a server twice: {', '.join(urls)}; name each once")
        return tuple(url.rstrip("/") for url in urls)


EngineOptions = Annotated[
    LocalOptions | VLLMOptions | VLLMServerOptions,
    Field(discriminator="name"),
    BeforeValidator(lambda value: named(value, default="local")),
]


class RolloutOptions(SamplingOptions):
    """How a step's questions are asked, how often, and when to stop looking for informative ones."""

    questions: int = Field(512, ge=1)
    """Informative questions a step trains on (the paper's 512)."""
    completions: int = Field(16, ge=1)
    """Answers sampled to each question, K (the paper's 16)."""
    filter: Literal["informative", "none"] = "informative"
    """Train on questions with right and wrong answers, asking until there are enough; or on all that are asked, as the
    paper's GRPO does."""
    truncated_answers: Literal["wrong", "excluded"] = "wrong"
    """Answers cut at the length limit count as wrong, or are left out of their group before it is judged."""
    overlong_buffer: int | None = Field(None, ge=1)
    """DAPO's over-long shaping, for objectives with an advantage: in the last so many of `max_new_tokens` an answer's
    reward falls, from nothing to half of what being right earns. None: its verdict is all that it earns."""
    max_sampled_questions: int | None = Field(None, ge=1)
    """Questions asked at most in one step; by default 8 times `questions`. With `filter: none`, questions asked in a
    row from which nothing can be learnt before the run ends."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Questions whose prompt is longer are left out, and counted; so is one that leaves no room for an answer."""
    max_sequences: int = Field(256, ge=1)
    """Answers decoded at once, by each engine."""
    max_staleness: int = Field(0, ge=0)
    """Updates that a token's policy may be behind the one that is trained. 0: a step's answers are all sampled by the
    newest one. Above, questions are asked ahead and answers go on across updates, so that no step waits for its longest
    answer; what is older is dropped, and counted."""
    engine: EngineOptions = LocalOptions()
    """What samples."""

    @model_validator(mode="after")
    def _can_be_filled(self) -> RolloutOptions:
        if self.overlong_buffer is not None and self.overlong_buffer > self.max_new_tokens:
            raise ValueError(
                f"overlong_buffer is {self.overlong_buffer}, more than max_new_tokens, {self.max_new_tokens}, of which "
                "it is the last part; set it lower"
            )
        if self.filter == "none" and self.truncated_answers == "excluded":
            raise ValueError(
                "filter is none, which trains on all that is sampled, but truncated_answers is excluded; set it to "
                "wrong, or filter to informative"
            )
        if self.max_staleness and self.ranks_per_engine > 1:
            raise ValueError(
                f"max_staleness is {self.max_staleness}, but ranks that share an engine (engine.tensor_parallel is "
                f"{self.ranks_per_engine}) can't ask ahead; set it to 0, or sample with engine vllm_server"
            )
        return self

    @property
    def question_budget(self) -> int:
        """Questions asked at most in one step."""
        return self.max_sampled_questions or 8 * self.questions

    @property
    def ranks_per_engine(self) -> int:
        """Ranks in a row that are one engine together."""
        return self.engine.tensor_parallel if isinstance(self.engine, VLLMOptions) else 1
