"""What explains a step, added up where the model computes: nothing waits for the device until it is read.

It knows neither the objective nor the optimizer.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from negaware.ranks import Ranks


class Tally:
    """Sums by name, over the micro-batches and mini-batches of a rollout.

    A GPU is given work long before it does it. Asking it for a number means waiting until all of that is done, so sums
    stay on the device, and `read` asks for all of them at once, once in an optimizer step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.learning_rate = 0.0
        self._waiting: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        """Adds each value [] to the sum of its name, in float64 on the device."""
        for name, value in values.items():
            total = self._waiting.get(name)
            if total is None:
                total = torch.zeros((), dtype=torch.float64, device=self.device)
            self._waiting[name] = total + value.detach()

    def read(self, **values: Tensor) -> dict[str, float]:
        """The numbers of these tensors [], and all sums so far: the one wait for the device in an optimizer step."""
        waiting, self._waiting = self._waiting, {}
        at_once = [*waiting.values(), *(value.detach() for value in values.values())]
        numbers = torch.stack([each.to(self.device, torch.float64, non_blocking=True) for each in at_once]).tolist()
        for name, number in zip(waiting, numbers, strict=False):
            self.sums[name] += number
        return dict(zip(values, numbers[len(waiting) :], strict=True))

    def add_step(self, loss: float, norm: float, learning_rate: float) -> None:
        """An optimizer step's loss over the whole mini-batch, its gradient norm, and the rate it was made with."""
        self.losses.append(loss)
        self.norms.append(norm)
        self.learning_rate = learning_rate

    def metrics(self, ranks: Ranks) -> dict[str, float]:
        """The rollout's metrics, from the sums that were read on all ranks."""
        sums = ranks.sums(self.sums)
        tokens = sums["tokens"]
        fractions = {name: total / tokens for name, total in sums.items() if name.startswith(("share_", "weight_"))}
        metrics = {
            "loss": sum(self.losses) / len(self.losses),
            "grad_norm": sum(self.norms) / len(self.norms),
            "learning_rate": self.learning_rate,
            "entropy": sums["entropy"] / tokens,
            "sampler_difference": sums["difference"] / max(sums["compared_tokens"], 1),
            "num_tokens": float(tokens),
            "num_optimizer_steps": float(len(self.losses)),
        }
        if "importance_weight" in sums:
            metrics["importance_weight"] = sums["importance_weight"] / tokens
        return {f"train/{name}": value for name, value in (metrics | fractions).items()}
