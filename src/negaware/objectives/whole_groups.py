"""All answers of groups, for losses that compare them; each answer is represented by the sum of its log-ratios."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

with suppress(ImportError):  # shapes are checked where jaxtyping is installed (the tests); torch alone is enough
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, slots=True)
class WholeGroups:
    """N answers, all those of G groups.

    log_ratio [N]: Σ_t log R_t of each answer, R its tokens' likelihood ratio π_θ/π_old; length [N]: its tokens; correct
    [N]: its verdict; group [N]: which group it belongs to, 0 … G − 1; count: G, by default the last group's number + 1,
    which makes the program wait for a GPU.
    """

    log_ratio: Float[Tensor, " N"]
    length: Int[Tensor, " N"]
    correct: Bool[Tensor, " N"]
    group: Int[Tensor, " N"]
    count: int | None = field(default=None, kw_only=True)

    @property
    def num_groups(self) -> int:
        """G."""
        return int(self.group.max()) + 1 if self.count is None else self.count

    @property
    def mean_log_ratio(self) -> Float[Tensor, " N"]:
        """The mean of each answer's log R_t."""
        return self.log_ratio / self.length.clamp(min=1).to(self.log_ratio.dtype)

    @property
    def is_informative(self) -> Bool[Tensor, " G"]:
        """Whether each group has right and wrong answers."""
        num_right = self.sums(self.correct.long())
        return (num_right > 0) & (num_right < self.sums(torch.ones_like(self.group)))

    def sums(self, values: Tensor) -> Tensor:
        """Each group's sum [G] of its answers' values [N]."""
        return values.new_zeros(self.num_groups).index_add(0, self.group, values)

    def log_sum_exp(self, values: Tensor, among: Tensor | None = None) -> Tensor:
        """log Σ e^value over each group's answers, or over those `among` [N]: [G], −∞ for a group without any."""
        counts = self.group == torch.arange(self.num_groups, device=self.group.device)[:, None]
        counts = counts if among is None else counts & among
        return torch.where(counts, values, -torch.inf).logsumexp(1)


@dataclass(frozen=True, slots=True)
class Whole:
    """The groups of a mini-batch under the present policy, without a gradient; and the place of each answer that a loss
    is given among all their answers, places [B]."""

    groups: WholeGroups
    places: Int[Tensor, " B"]
