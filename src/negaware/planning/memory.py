"""The memory of one rank, by purpose and by moment, computed from what the code is known to hold.

What autograd keeps follows from models/cpu/decoder.py on the CPU, elsewhere from transformers' layers with a float32
stream (models/residual.py) and attention that keeps no scores. Notation: D hidden width, I width of the MLP, c bytes of
the compute dtype. benchmarks/plan_error.py compares the plan with measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from negaware.models.cuda.graphs import COLUMN_BLOCK, ROW_BLOCK, bucket
from negaware.models.logprobs import LEAST_COLUMNS, LOGITS_AT_ONCE
from negaware.planning.setting import Machine, Setting
from negaware.rollout.vllm import GPU_MEMORY_FRACTION

SINGLE = 4  # bytes of a float32 number
Parts = dict[str, int]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by purpose: those always held, and those that each moment of a step adds, one moment at a time."""

    always: Parts
    moments: Mapping[str, Parts]
    on_the_host: int = 0
    """Bytes of the CPU's memory for a rank."""

    def total(self, moment: str) -> int:
        """Bytes held at this moment."""
        return sum(self.always.values()) + sum(self.moments[moment].values())

    @property
    def peak(self) -> int:
        """Bytes at the worst moment. torch keeps memory that it once had, and uses it again."""
        return max(self.total(moment) for moment in self.moments)


def memory(setting: Setting, machine: Machine | None = None) -> Memory:
    """The memory of one rank. vLLM's keys and values depend on the machine; without one they aren't bounded."""
    always, host = _always(setting)
    moments = {"training": _gradients(setting) | activations(setting)}
    if setting.ranks > 1 and not setting.model.is_frozen:
        # The end of a backward pass over several ranks: no activations are left.
        shard = 0 if setting.offload == "cpu" else -(-SINGLE * setting.model.num_trained // setting.ranks)
        moments["gradients outside the layers are summed"] = {
            f"gradients, float32, 1/{setting.ranks}": shard,
            "embeddings and head, their gradients, and the float32 sums": (2 * setting.itemsize + SINGLE)
            * setting.model.root_parameters,
        }
    moments["sampling"] = _sampling(setting, machine)
    return Memory(always, moments, host)


def layer_bytes(setting: Setting) -> int:
    """Bytes that one layer keeps of one token for the backward pass.

    Fused: 8·D + c·(queries, keys, values, attended, 2·I). Otherwise 16·D + c·(2·D + queries, keys, values, attended +
    4·I): before each half, the float32 stream and its normed copy; then gate, its SiLU, up and their product.
    """
    model, c = setting.model, setting.itemsize
    attention = c * (model.states_width + model.attended_width)
    if setting.is_fused:
        return 2 * SINGLE * model.width + attention + c * 2 * model.mlp_width
    norms = 2 * (2 * SINGLE + c) * model.width
    normalisers = SINGLE * (model.num_heads + 2)  # of softmax in each head, and of the two norms
    return norms + attention + c * 4 * model.mlp_width + normalisers


def activations(setting: Setting) -> Parts:
    """Bytes of the largest micro-batch, forward and backward."""
    model, c, tokens = setting.model, setting.itemsize, setting.tokens_at_once
    last_norm = (SINGLE if setting.is_fused else 2 * SINGLE) * model.width + c * model.width
    rotation = 2 * model.head_width * (SINGLE if setting.is_fused else c)
    once = tokens * (last_norm + rotation)
    layer = tokens * layer_bytes(setting)
    inputs = tokens * model.num_layers * SINGLE * model.width
    if setting.activations == "kept":
        kept = {"activations, kept": model.num_layers * layer + once}
    else:
        kept = {"activations, the layers' inputs": inputs + once, "activations, of one layer computed again": layer}
    return kept | {
        "gradients between layers": tokens * (SINGLE * model.width + 2 * c * model.mlp_width),
        "hidden states of answer tokens, and their gradient": tokens * (SINGLE + 2 * c) * model.width,
        "logits, a part of the vocabulary, and their gradient": logits_bytes(setting),
    }


def logits_bytes(setting: Setting) -> int:
    """Bytes of the logits that models/logprobs.py holds: float32, their gradient, and this in the compute dtype."""
    tokens, vocabulary = setting.tokens_at_once, setting.model.vocabulary
    at_once = LOGITS_AT_ONCE.get(setting.device, LOGITS_AT_ONCE["cuda"])
    elements = tokens * min(max(at_once // tokens, LEAST_COLUMNS), vocabulary)
    return elements * (2 * SINGLE + (setting.itemsize if setting.itemsize < SINGLE else 0))


def _always(setting: Setting) -> tuple[Parts, int]:
    """Weights, the optimizer's state and what the sampler keeps; and the bytes of them in the CPU's memory."""
    model, ranks = setting.model, setting.ranks
    shard = f", 1/{ranks}" if ranks > 1 else ""
    count = f"weights ({model.num_parameters / 1e6:,.0f}M)"
    if model.is_frozen:
        weights = {
            f"{count}, frozen{shard}": -(-setting.itemsize * model.num_parameters // ranks),
            f"adapters ({model.num_trained / 1e6:,.1f}M), float32{shard}": -(-SINGLE * model.num_trained // ranks),
        }
    else:
        weights = {f"{count}, float32{shard}": -(-SINGLE * model.num_parameters // ranks)}
    moments = {f"AdamW's two moments, float32{shard}": -(-2 * SINGLE * model.num_trained // ranks)}
    sampler = _local_sampler(setting)
    if ranks > 1 and setting.offload == "cpu":
        gradients = -(-SINGLE * model.num_trained // ranks)
        return sampler, sum((weights | moments).values()) + gradients
    computing = ranks == 1 and setting.itemsize < SINGLE
    copy = {"trained weights that compute": setting.itemsize * model.num_trained} if computing else {}
    return weights | moments | copy | sampler, 0


def _local_sampler(setting: Setting) -> Parts:
    """What the local engine keeps: a copy of the weights if training has them in shards, and its buffers on CUDA."""
    if setting.sampler.name != "local":
        return {}
    rows, copied = rows_at_once(setting), setting.ranks > 1
    copy = {"the sampler's copy of the weights": setting.itemsize * setting.model.num_parameters} if copied else {}
    on_cuda = setting.device == "cuda"  # captured graphs read them
    return copy | ({f"keys and values of {rows} answers": _cache_bytes(setting, rows)} if on_cuda else {})


def _gradients(setting: Setting) -> Parts:
    """Gradients, and the whole weights that computing needs."""
    model, ranks, c = setting.model, setting.ranks, setting.itemsize
    if ranks == 1:
        largest = max(model.head_parameters, model.layer_parameters // 2)
        joined = model.num_layers * model.width * (model.states_width + 2 * model.mlp_width)
        if model.is_frozen:  # adapters are merged into all of a layer's weights
            joined = model.num_layers * model.layer_parameters
        parts = {
            "gradients, float32": SINGLE * model.num_trained,
            "one weight's gradient in the compute dtype": c * largest if c < SINGLE and not model.is_frozen else 0,
            "weights side by side, as the CPU's products read them": c * joined if setting.is_fused else 0,
        }
        return {name: size for name, size in parts.items() if size}
    offloaded = setting.offload == "cpu"
    trained_of_layer = model.num_trained // model.num_layers if model.is_frozen else model.layer_parameters
    trained_of_head = 0 if model.is_frozen else model.head_parameters
    return {
        **({} if offloaded else {f"gradients, float32, 1/{ranks}": -(-SINGLE * model.num_trained // ranks)}),
        "embeddings and head, gathered, and the head's gradient": c * (model.root_parameters + trained_of_head),
        "two layers, gathered, and the buffer that gathers": 3 * c * model.layer_parameters,
        "a layer's gradients, and their float32 sums": (c + SINGLE) * trained_of_layer,
    }


def _sampling(setting: Setting, machine: Machine | None) -> Parts:
    model, c, sampler = setting.model, setting.itemsize, setting.sampler
    rows = rows_at_once(setting, machine)
    if sampler.name == "vllm_server":
        return {}
    if sampler.name == "vllm":
        needed = rows * sequence_bytes(setting)
        given = vllm_cache(setting, machine) if sampler.cache or sampler.takes_half else None
        return {
            f"vLLM's weights, 1/{sampler.tensor_parallel}": _vllm_weights(setting),
            f"keys and values of {rows} answers": needed if given is None else max(given, 0),
        }
    packed = c * model.num_layers * model.layer_parameters + SINGLE * model.head_parameters
    parts = {
        "weights as the CPU's products read them": packed if setting.is_fused and c < SINGLE else 0,
        f"keys and values of {rows} answers": 0 if setting.device == "cuda" else _cache_bytes(setting, rows),
        "logits of a decode step": 2 * SINGLE * rows * model.vocabulary,
    }
    return {name: size for name, size in parts.items() if size}


def rows_at_once(setting: Setting, machine: Machine | None = None) -> int:
    """Answers that an engine decodes at once. The local engine: at least those of a question; vLLM: as many as fit."""
    rows = min(setting.max_sequences, setting.sequences_an_engine)
    if setting.sampler.name != "vllm":
        return max(setting.completions, rows)
    room = vllm_cache(setting, machine)
    return rows if room is None else max(1, min(rows, room // sequence_bytes(setting)))


def vllm_cache(setting: Setting, machine: Machine | None) -> int | None:
    """Bytes of a GPU for vLLM's keys and values; None if it depends on an unknown GPU.

    It is what the config says; or what vLLM's weights leave of half the GPU, if vLLM takes half, otherwise of all that
    training doesn't always hold. Below 0 if the weights leave nothing.
    """
    sampler = setting.sampler
    if sampler.cache is not None:
        return sampler.cache
    if machine is None:
        return None
    always = sum(_always(setting)[0].values())
    given = int(GPU_MEMORY_FRACTION * machine.memory) if sampler.takes_half else machine.usable - always
    return given - _vllm_weights(setting)


def server_cache(setting: Setting, machine: Machine) -> int:
    """Bytes of a GPU for keys and values if vLLM alone uses the GPU; below 0 if its weights don't fit."""
    return machine.usable - _vllm_weights(setting)


def _vllm_weights(setting: Setting) -> int:
    return -(-setting.itemsize * setting.model.num_parameters // setting.sampler.tensor_parallel)


def sequence_bytes(setting: Setting) -> int:
    """Bytes of one GPU for keys and values of the longest answer with its question. A head isn't split."""
    split = min(setting.sampler.tensor_parallel, setting.model.num_key_heads)
    return -(-setting.longest * setting.model.cache_bytes(setting.itemsize) // split)


def _cache_bytes(setting: Setting, rows: int) -> int:
    """Keys and values in the local engine: on the CPU a question's are held once; elsewhere sizes are rounded up."""
    token = setting.model.cache_bytes(setting.itemsize)
    columns = max(1, setting.answer_tokens - 1)  # an answer's last token is never read
    if setting.is_fused:
        block = min(columns, COLUMN_BLOCK)
        questions = -(-rows // setting.completions)
        return token * (questions * setting.prompt_tokens + rows * block * -(-columns // block))
    return token * bucket(rows, ROW_BLOCK) * bucket(setting.prompt_tokens + columns, COLUMN_BLOCK)
