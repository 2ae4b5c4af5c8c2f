"""The engine that `rollout.engine` names, made for a policy. It samples nothing itself."""

from __future__ import annotations

from pathlib import Path

from negaware.models.load import Policy
from negaware.rollout.engine import Engine
from negaware.rollout.local import LocalEngine
from negaware.rollout.options import RolloutOptions, VLLMOptions, VLLMServerOptions


def make_engine(options: RolloutOptions, policy: Policy, compute_dtype: str, folder: Path) -> Engine:
    """The engine of a run in `folder`, whose trainer computes in `compute_dtype`.

    An engine with weights of its own has those that the policy was loaded from, at best: hand over the policy's before
    it samples. ValueError if the engine can't be had.
    """
    name, max_sequences = str(policy.model.name_or_path), options.max_sequences
    match options.engine:
        case VLLMOptions():
            from negaware.rollout.vllm import VLLMEngine

            return VLLMEngine(name, compute_dtype, policy.max_tokens, options.engine, max_sequences)
        case VLLMServerOptions():
            from negaware.rollout.vllm_server import VLLMServerEngine

            shared = options.engine.shared_folder or folder / "weights"
            tied = bool(policy.model.config.get_text_config(decoder=True).tie_word_embeddings)
            return VLLMServerEngine(options.engine.url, shared, tied, max_sequences)
    return LocalEngine(policy.model, max_sequences)
