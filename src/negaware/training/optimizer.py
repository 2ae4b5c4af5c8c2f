"""AdamW on float32 master weights, whatever dtype the model computes in; and its learning-rate schedule.

A bfloat16 weight cannot take an update of 1e-5, so the masters take it and the model gets a rounded copy. Of sharded
weights FSDP makes that copy, and a rank's masters are its shards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from negaware.training.options import TrainingOptions


class MasterOptimizer:
    """AdamW's state over the float32 `masters` of a model's weights, by name, and their gradients.

    From here on a backward pass through the model leaves its gradients there. They are added up in float32 as
    soon as each parameter's is complete, so any number of micro-batches loses nothing to the compute dtype.
    """

    def __init__(
        self, model: nn.Module, masters: Mapping[str, Tensor], options: TrainingOptions, num_rollouts: int
    ) -> None:
        self.options, self.masters = options, masters
        self.num_rollouts = num_rollouts
        self.num_steps_done = 0
        self.rollouts_done = 0
        self.place = (0, 1)
        """The next optimizer step's index in its rollout, and the number of steps there."""
        self._trained = {name: parameter for name, parameter in model.named_parameters() if name in masters}
        for name, parameter in self._trained.items():
            if masters[name] is not parameter:
                parameter.register_post_accumulate_grad_hook(self._collector_of(masters[name]))
        # fused: one pass over the weights instead of ten
        self.adamw = torch.optim.AdamW(
            list(self.masters.values()),
            lr=options.learning_rate,
            betas=options.betas,
            weight_decay=options.weight_decay,
            fused=True,
        )

    @staticmethod
    def _collector_of(master: Tensor) -> Callable[[Tensor], None]:
        def collect(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

        return collect

    def learning_rate(self) -> float:
        """The learning rate of the coming optimizer step; the first of a warm-up of n is 1/n of the whole, not 0.

        The schedule counts rollouts: one that makes fewer steps takes the rate as far as any other.
        """
        options, (index, num_steps) = self.options, self.place
        begin, end = (self.rollouts_done + step / num_steps for step in (index, index + 1))
        if begin < options.warmup_rollouts:
            return options.learning_rate * end / options.warmup_rollouts
        if options.schedule == "constant":
            return options.learning_rate
        progress = (begin - options.warmup_rollouts) / max(1, self.num_rollouts - options.warmup_rollouts)
        return options.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def gradient_norm(self) -> Tensor:
        """The norm of all collected gradients, before clipping."""
        norm = torch.nn.utils.get_total_norm([m.grad for m in self.masters.values() if m.grad is not None])
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    @torch.no_grad()
    def step(self, gradient_norm: Tensor) -> None:
        """Clips, updates the masters, and copies them into the model."""
        torch.nn.utils.clip_grads_with_norm_(self.masters.values(), self.options.max_grad_norm, gradient_norm)
        for group in self.adamw.param_groups:
            group["lr"] = self.learning_rate()
        self.adamw.step()
        self.adamw.zero_grad()
        self.num_steps_done += 1
        self.sync_model()

    def discard_gradients(self) -> None:
        """Forgets the gradients collected so far."""
        self.adamw.zero_grad()

    @torch.no_grad()
    def sync_model(self) -> None:
        """Copies the masters into the model's parameters (nothing to do where they are the same tensors)."""
        for name, parameter in self._trained.items():
            if parameter.dtype != torch.float32:
                parameter.copy_(self.masters[name])

    def tensors(self) -> dict[str, Tensor]:
        """Masters and AdamW's moments by name, the very tensors: what a checkpoint holds, and is read back into."""
        tensors = {f"master/{name}": master for name, master in self.masters.items()}
        for name, master in self.masters.items():
            state = self.adamw.state[master]
            if not state:  # AdamW makes its state at the first step; a resumed run needs it before
                state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
            tensors |= {f"{key}/{name}": value for key, value in state.items()}
        return tensors
