"""Whether a model's files hold what it is made of: nothing is left random, nothing left out, no number that is none.

It loads no model.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from negaware.libraries import reason

FROM_FILES: Mapping[str, Any] = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
"""How transformers is to load weights: from files that can't hold code, with a word on those that don't fit."""
LARGEST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 1_000),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "intermediate_size", "head_dim", "vocab_size"), 2**24),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "num_key_value_heads", "num_experts", "num_local_experts"), 2**14
    ),
}
"""Sizes in a config.json beyond any model: to make such a model takes hours, or all memory, whatever its files hold."""
OWN_CODE = "it comes with code of its own (auto_map), which is not run here; name a model that transformers itself has"


def require_all_weights(name: str, found: Mapping[str, Any]) -> None:
    """ValueError unless the files of the model `name` hold just its weights, by what transformers found on loading.

    transformers has left out what may be missing or too much: tied heads, buffers of earlier versions.
    """
    shapes = [f"{key} as {list(held)}, not {list(own)}" for key, held, own in found["mismatched_keys"]]
    _require_none(name, "lack", found["missing_keys"], "which would be random")
    _require_none(name, "have", found["unexpected_keys"], "which it has no place for")
    _require_none(name, "have", shapes, "which doesn't fit its config.json")


def require_all_adapters(name: str, missing: Collection[str], unexpected: Collection[str]) -> None:
    """ValueError unless the adapters `name` are whole, by what peft found on loading."""
    _require_none(name, "lack", missing, "which would be random")
    _require_none(name, "have", unexpected, "which its base has no place for")


def require_possible_sizes(name: str, source: str | Path, about_base: str = "") -> None:
    """ValueError if the config.json of the model `name` at `source` can't be read or has sizes beyond any model.

    `about_base` is what the sentence says besides of adapters, whose `source` is another model's.
    """
    try:
        with files_of_users():
            config, _ = PreTrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"The model {name!r}{about_base} can't be loaded: {why_not_loaded(error)}") from error
    waiting: list[tuple[Any, str]] = [(config, "")]
    while waiting:
        part, place = waiting.pop()
        for key, value in part.items() if isinstance(part, dict) else ():
            waiting.append((value, f"{place}{key}."))
            if isinstance(value, int | float) and key in LARGEST and not 0 <= value <= LARGEST[key]:
                raise ValueError(
                    f"{place}{key} in the config.json of the model {name!r} is {str(value)[:40]}, where 0 to "
                    f"{LARGEST[key]:,} would do; get the model's folder anew, as a whole."
                )


def require_finite(name: str, model: nn.Module) -> None:
    """ValueError naming the first weight of the model `name` that holds NaN or infinity."""
    for key, weight in model.named_parameters():
        # Smallest and largest: NaN is either, and no copy is made.
        if (
            weight.is_floating_point()
            and weight.numel()
            and not torch.stack(weight.detach().aminmax()).isfinite().all()
        ):
            raise ValueError(
                f"{key} holds NaN or infinity in the files of the model {name!r}; get the model's folder anew, or go "
                "back to an earlier one."
            )


def why_not_loaded(error: BaseException) -> str:
    """What stands against loading, in one line."""
    return OWN_CODE if "trust_remote_code" in str(error) else reason(error)


def is_whole(folder: Path) -> bool:
    """Whether a model or adapters are in the folder, with a tokenizer, and no file of weights or JSON is cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        read = {path.name: json.loads(path.read_bytes()) for path in folder.glob("*.json")}
        needed = {
            name for index in read if index.endswith(".index.json") for name in read[index]["weight_map"].values()
        }
        weights = {path.name for path in folder.glob("*.safetensors")}
        for name in weights:
            with safe_open(folder / name, "pt"):  # compares the file's size with its header's
                pass
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError, SafetensorError):
        return False
    configs = read.keys() & {"config.json", "adapter_config.json"}
    return bool(weights and configs) and needed <= weights and "tokenizer_config.json" in read


@contextmanager
def files_of_users() -> Iterator[None]:
    """A block in which other people's code reads a user's files: what it meets where they hold other types than it
    expects becomes a ValueError. Nothing of ours runs in it, whose mistakes would be hidden."""
    try:
        yield
    except (TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, RecursionError) as error:
        raise ValueError(f"it holds what can't be read ({type(error).__name__}: {reason(error)})") from error


@contextmanager
def silent_transformers() -> Iterator[None]:
    """A block in which transformers doesn't report what will be said in one sentence."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def require_safetensors(source: str | Path) -> None:
    """ValueError for a folder of adapters in a format that can hold code."""
    old, new = (Path(source, f"adapter_model.{kind}") for kind in ("bin", "safetensors"))
    if old.exists() and not new.exists():
        raise ValueError(f"{old} is no safetensors file; load it with peft and save it again")


def _require_none(name: str, verb: str, keys: Collection[str], why: str) -> None:
    if keys:
        listed = ", ".join(sorted(keys)[:3])
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise ValueError(
            f"The files of the model {name!r} {verb} {listed}{more}, {why}; get the model's folder anew, as a whole."
        )
