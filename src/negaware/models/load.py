"""Loads the policy: a transformers model with its tokenizer, from the hub, a folder, or the embedded package.

It refuses, in one sentence, what could not be trained or prompted later.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from negaware.libraries import reason
from negaware.models.codec import Codec
from negaware.models.cpu.products import HAS_BFLOAT16_PRODUCTS
from negaware.models.embedded import EMBEDDED_MODEL, embedded_model_folder
from negaware.models.files import (
    FROM_FILES,
    OWN_CODE,
    files_of_users,
    require_all_weights,
    require_finite,
    require_possible_sizes,
    require_safetensors,
    silent_transformers,
    why_not_loaded,
)
from negaware.models.lora import (
    add_adapters,
    base_of_adapters,
    put_on,
    require_peft,
)
from negaware.models.network import Network, make_ready
from negaware.models.options import LoraOptions
from negaware.models.parallel import ShardedModel, require_own_names
from negaware.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Policy:
    """The network (eval mode: no dropout between sampling and training) and its codec."""

    network: Network
    codec: Codec
    lora: LoraOptions | None = None
    """Of the adapters on it; without them all of its weights may be trained."""

    @property
    def model(self) -> PreTrainedModel:
        """transformers' own."""
        return self.network.model

    @property
    def max_tokens(self) -> int:
        """The longest sequence the model can take, in tokens."""
        return self.network.description.max_tokens


def load_policy(
    name: str,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    lora: LoraOptions | None = None,
    trained: bool = False,
) -> Policy:
    """Loads the model `name`, to compute in `dtype`: a folder, a hub name, or the embedded model.

    With new adapters on it if `lora` is given, and masters if it is `trained`. ValueError as `load_model`, or if the
    model's logits aren't those of one linear layer.
    """
    # What LoRA freezes is only ever the copy that computes.
    model, codec = load_model(name, torch.float32 if trained and lora is None else dtype, lora)
    model.to(torch.device(device))  # type: ignore[arg-type]
    return Policy(make_ready(model, dtype if trained else None), codec, lora)


def load_sharded_policy(
    name: str,
    ranks: Ranks,
    device: torch.device | str,
    compute_dtype: torch.dtype,
    offloads: bool,
    lora: LoraOptions | None = None,
) -> Policy:
    """The model `name` in shards, what is trained in float32: the first rank reads it and sends each weight in turn.

    Beyond its shards a rank other than the first never holds more than a weight (on a GPU: a layer). ValueError as
    `load_policy`, or if the model's files don't name its weights as it does itself.
    """
    dtype = torch.float32 if lora is None else compute_dtype
    loaded = load_model(name, dtype, lora) if ranks.is_first else None
    dist.barrier()  # the first rank may have had to download it
    model, codec = loaded or load_skeleton(name, dtype, lora)
    for parameter in model.parameters():
        if parameter.requires_grad:  # adapters too
            parameter.data = parameter.data.float()
    require_own_names(model)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for _, buffer in model.named_buffers():
        dist.broadcast(buffer, src=0)
    sharded = ShardedModel(model, torch.device(device), compute_dtype, offloads)
    for name, parameter in model.named_parameters():
        shard = cast(DTensor, parameter.detach())
        weight = weights.pop(name)  # of the first rank the model's, of others a place for it
        placed = weight.to(device) if ranks.is_first else torch.empty_like(weight, device=device)
        sent = distribute_tensor(placed, shard.device_mesh, shard.placements)
        shard.to_local().copy_(sent.to_local())
    return Policy(make_ready(model, compute_dtype, sharded=sharded), codec, lora)


def load_model(name: str, dtype: torch.dtype, lora: LoraOptions | None = None) -> tuple[PreTrainedModel, Codec]:
    """The model `name` on the CPU in eval mode, with new adapters on it if `lora` is given, and its codec.

    A folder of saved adapters is loaded as the whole model that they make with their base. ValueError if there is no
    such model, no tokenizer, no chat template or no end-of-sequence token.
    """
    from safetensors import SafetensorError

    transformers_logging.disable_progress_bar()
    if lora is not None:
        require_peft()
    source = locate(name)
    codec = load_codec(name)
    base = base_of_adapters(source)
    if lora is not None and lora.save == "adapter" and base is not None:
        raise ValueError(
            f"The model {name!r} is itself adapters on {base!r}, so adapters on it could not be loaded alone; "
            "set model.lora.save to merged."
        )
    about_base = "" if base is None else f" (adapters on {base!r})"
    require_possible_sizes(name, base or source, about_base)
    try:
        with silent_transformers(), files_of_users():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                base or source, dtype=dtype, trust_remote_code=False, **FROM_FILES
            )
        model, found = loaded
        require_all_weights(base or name, found)
        if base is not None:
            require_safetensors(source)
            model = put_on(model, source)
        require_finite(name, model)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"The model {name!r}{about_base} can't be loaded: {why_not_loaded(error)}") from error
    if lora is not None:
        add_adapters(model, lora, str(Path(source).absolute()) if Path(source).is_dir() else str(source))
    # So that a finished run's folder generates until the same tokens that ended an answer in training.
    model.generation_config.eos_token_id = list(codec.stop_token_ids)
    return model.eval(), codec


def load_skeleton(name: str, dtype: torch.dtype, lora: LoraOptions | None = None) -> tuple[PreTrainedModel, Codec]:
    """The same as `load_model`, with weights of any value, which take up no memory until they are written."""
    source, codec = locate(name), load_codec(name)
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(base_of_adapters(source) or source, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.to_empty(device="cpu")
    model.tie_weights()
    if lora is not None:
        add_adapters(model, lora, name)
    return model.eval(), codec


def pick_device(name: str) -> str:
    """The device that `auto` stands for here, or the named one. ValueError for a GPU that isn't there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no GPU here; set it to auto or cpu.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def compute_dtype(name: str, device: str | torch.device = "cpu") -> torch.dtype:
    """The dtype of a config's name; `auto` is bfloat16 where the device multiplies it faster than float32."""
    if name == "auto":
        is_fast = HAS_BFLOAT16_PRODUCTS if torch.device(device).type == "cpu" else True
        name = "bfloat16" if is_fast else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def load_codec(name: str) -> Codec:
    """The tokenizer of the model `name` with its chat template. ValueError if either is missing."""
    source = locate(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # other people's code on a user's files; the Rust behind it raises bare Exceptions
        if (why := why_not_loaded(error)) == OWN_CODE:
            raise ValueError(f"The model {name!r} can't be loaded: {why}") from error
        raise ValueError(
            f"The model {name!r} has no tokenizer that can be loaded ({why}); "
            "put the tokenizer's files into its folder, or name a model that has them."
        ) from error
    if not tokenizer.chat_template:
        raise ValueError(
            f"The tokenizer of {name!r} has no chat template; add one as chat_template.jinja to its folder, "
            "or name an instruction-tuned model."
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer of {name!r} has no eos token, so no answer would ever end; set eos_token in its "
            f"tokenizer_config.json to the token that ends a turn of its chat template{_end_token(tokenizer)}."
        )
    codec = Codec(tokenizer, _stop_token_ids(source, int(tokenizer.eos_token_id)))
    codec.encode([{"role": "user", "content": "1 + 1 = ?"}])  # so that a template that can't be used is told now
    return codec


def _end_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """One that the vocabulary has, as an example."""
    usual = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<eos>")
    found = [token for token in usual if token in tokenizer.get_vocab()]
    return f", such as {found[0]!r}, which its vocabulary has" if found else ""


def _stop_token_ids(source: str | Path, eos_token_id: int) -> tuple[int, ...]:
    """The tokenizer's eos and whatever else ends the model's turns (Gemma's `<end_of_turn>` is no eos)."""
    try:
        with files_of_users():
            others = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:  # a model need not have one
        others = None
    except ValueError as error:
        raise ValueError(f"{source}/generation_config.json can't be read ({reason(error)}); correct it.") from error
    others = [others] if isinstance(others, int) else others or []
    if not isinstance(others, list) or not all(isinstance(other, int) for other in others):
        raise ValueError(
            f"eos_token_id in {source}/generation_config.json is {others!r}; give a token or a list of them."
        )
    return tuple(dict.fromkeys([eos_token_id, *others]))


def locate(name: str) -> str | Path:
    """The folder or hub name that `name` stands for. ValueError for a folder that isn't there or is a run's."""
    if name == EMBEDDED_MODEL:
        return embedded_model_folder()
    no_hub_name = name.startswith((".", "/", "~")) or name.count("/") > 1
    if no_hub_name and not Path(name).is_dir():
        raise ValueError(
            f"There is no model folder {name!r}; name a folder that exists, a hub model, or {EMBEDDED_MODEL!r}."
        )
    if any((Path(name) / "model" / file).exists() for file in ("config.json", "adapter_config.json")):
        raise ValueError(f"{name} is a run folder; its model is {Path(name) / 'model'}.")
    return name
