"""The objectives as functions of tensors: log-probabilities and verdicts in, per-token loss out. They need only torch.

Each is one function of `Answers` (contract.py); every module of this folder is imported. `OBJECTIVES` has all of them
by name. The free functions take `logprobs`, `old_logprobs`, `mask` [B, T]; `correct` [B] bool; `pass_rate`
[B] in (0, 1).
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in (
    "nft",
    "rft",
    "grpo",
    *(found.name for found in iter_modules(__path__)),
):  # lists begin with the paper's
    import_module(f"{__name__}.{_module}")

from negaware.objectives.contract import OBJECTIVES, Answers, Objective, Option, Terms  # noqa: E402
from negaware.objectives.group_loss import of_groups  # noqa: E402
from negaware.objectives.grpo import dapo_loss, dr_grpo_loss, grpo_loss  # noqa: E402
from negaware.objectives.nft import nft_loss  # noqa: E402
from negaware.objectives.rft import rft_loss  # noqa: E402
from negaware.objectives.whole_groups import WholeGroups  # noqa: E402

__all__ = [
    "OBJECTIVES",
    "Answers",
    "Objective",
    "Option",
    "Terms",
    "WholeGroups",
    "dapo_loss",
    "dr_grpo_loss",
    "grpo_loss",
    "nft_loss",
    "of_groups",
    "rft_loss",
]
