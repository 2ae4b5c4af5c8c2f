"""The engine that `rollout.engine` names, made for a policy. It samples nothing itself."""

from __future__ import annotations

import glob
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

from negaware.models.load import Policy, load_policy
from negaware.ranks import Ranks
from negaware.rollout.engine import Engine
from negaware.rollout.local import LocalEngine
from negaware.rollout.options import RolloutOptions, VLLMOptions, VLLMServerOptions, require_split_heads


def make_engine(
    options: RolloutOptions,
    policy: Policy,
    model: str,
    dtype: torch.dtype,
    device: str,
    folder: Path,
    ranks: Ranks,
    note: Callable[[str], object] = lambda _: None,
) -> Engine:
    """The engine of a run in `folder` that trains `model` in `dtype`; of several ranks, this one's.

    An engine with weights of its own has those that the policy was loaded from, at best: hand over the policy's before
    it samples. `note` is told a sentence for what the user should know. ValueError if the engine can't be had.
    """
    name, max_sequences = str(policy.model.name_or_path), options.max_sequences
    known = policy.network.description
    match options.engine:
        case VLLMOptions():
            from negaware.rollout.vllm import VLLMEngine

            _require_plain(name)
            require_split_heads(options.engine.tensor_parallel, known.num_heads, known.num_key_heads)
            return VLLMEngine(name, str(dtype).removeprefix("torch."), policy.max_tokens, options.engine, max_sequences)
        case VLLMServerOptions():
            from negaware.rollout.server_connection import read_api_key
            from negaware.rollout.vllm_server import VLLMServerEngine

            shared = folder / "weights"
            if options.engine.shared_folder is not None:  # several runs may have the same
                shared = options.engine.shared_folder / f"{folder.name}-{zlib.crc32(bytes(folder.absolute())):08x}"
            _require_plain(str(shared.absolute()))
            key = read_api_key(options.engine.api_key_env)
            return VLLMServerEngine(
                options.engine.url,
                shared,
                known.vocabulary_size,
                known.ties_head,
                max_sequences,
                ranks,
                key,
                note,
            )
        case _ if ranks.size == 1:  # the very model that is trained
            return LocalEngine(policy.network, max_sequences)
        case _:  # the trainer's weights are in shards: a whole copy
            return LocalEngine(load_policy(model, dtype, device).network, max_sequences)


def _require_plain(folder: str) -> None:
    """ValueError for a folder in whose name vLLM would see a pattern, and read what it matches."""
    if glob.has_magic(folder):
        raise ValueError(
            f"vLLM takes {folder} for a pattern and would read other files; give the folder a name without *, ? and [."
        )
