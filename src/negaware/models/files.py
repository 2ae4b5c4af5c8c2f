"""Whether a model's files hold what it is made of: nothing is left random, nothing is left out. It loads no model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from negaware.libraries import reason

FROM_FILES: Mapping[str, Any] = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
"""How transformers is to load weights: from files that can't hold code, with a word on those that don't fit."""
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


def why_not_loaded(error: BaseException) -> str:
    """What stands against loading, in one line."""
    return OWN_CODE if "trust_remote_code" in str(error) else reason(error)


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
