"""What can be set about learning. Every default's source is in its description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from negaware.validation import Options

Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainingOptions(Options):
    """How the policy learns from a rollout's groups."""

    optimizer_steps: int = Field(2, ge=1)
    """Optimizer steps (mini-batches) of a whole rollout; with fewer questions fewer, of the same size."""
    micro_batch_tokens: int = Field(4096, ge=1)
    """Tokens, padding counted, in one forward and backward."""
    learning_rate: float = Field(1e-6, gt=0)
    """AdamW's learning rate after warm-up (the paper's 1e-6)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after warm-up; cosine ends at 0 with the run's last rollout."""
    warmup_rollouts: int = Field(0, ge=0)
    """Rollouts of linear warm-up, optimizer step by optimizer step; the first one does train."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's betas (the paper's)."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW's weight decay (the paper's 0.1)."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm (the paper's 1.0)."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Weights and activations of both passes; the master weights are float32 either way.
    auto: bfloat16 where the device multiplies it faster."""
    activations: Literal["kept", "recomputed"] = "kept"
    """What the backward pass needs is kept, or computed again layer by layer: about a third more time for a fraction of
    the memory."""
    offload: Literal["none", "cpu"] = "none"
    """Where sharded weights, gradients and optimizer state wait while not in use (several ranks): on the device, or in
    the CPU's memory."""
    old_logprobs: Literal["recorded", "recomputed"] | None = None
    """π_old as the sampler recorded it, or computed again by the trainer before its first optimizer step.

    By default recorded where the local engine samples, recomputed elsewhere (docs/sampling.md). Recomputed, groups
    carried over from an earlier step count as sampled by the present policy, unless importance weights say otherwise.
    """
    importance_weight_cap: float | None = Field(None, gt=0)
    """Each token's loss is multiplied by π_old over the sampler's probability, at most this; by default by nothing.

    Truncated importance sampling; 2 is the value of its authors (Yao et al. 2025). Needs π_old recomputed.
    """

    @model_validator(mode="before")
    @classmethod
    def _refuse_warmup_steps(cls, data: Any) -> Any:
        """A warm-up counted in optimizer steps is refused; none at all, as older run folders say it, is none."""
        if isinstance(data, dict) and "warmup_steps" in data:
            if data["warmup_steps"] != 0:
                raise ValueError(
                    f"warmup_steps is {data['warmup_steps']!r}, but the warm-up is counted in rollouts; give "
                    "warmup_rollouts instead (warmup_steps divided by optimizer_steps)"
                )
            data = {name: value for name, value in data.items() if name != "warmup_steps"}
        return data
