"""NFT inside verl: the policy loss `nft`, and the advantage estimator `nft` that gives it each answer's verdict.

Importing this module adds both to verl's registries; `configs/verl/nft_7b.yaml` shows the options that make verl import
it in each process that needs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from negaware.libraries import require_installed

require_installed("verl>=0.9.1,<0.9.2", __name__)

from verl.trainer.ppo.core_algos import agg_loss, register_adv_est, register_policy_loss  # noqa: E402
from verl.utils.groupwise import as_torch_index  # noqa: E402
from verl.utils.torch_functional import masked_mean  # noqa: E402
from verl.workers.config import PolicyLossConfig  # noqa: E402

from negaware.objectives import OBJECTIVES, Answers  # noqa: E402
from negaware.objectives.contract import try_out  # noqa: E402
from negaware.objectives.credit import centred_advantage  # noqa: E402

OBJECTIVE = OBJECTIVES["nft"]
OPTIONS = OBJECTIVE.keywords

if TYPE_CHECKING:

    class _WithOptions(PolicyLossConfig): ...

else:
    _WithOptions = make_dataclass(
        "_WithOptions",
        # hydra, which reads verl's configs, doesn't know Literal: a choice is a text there.
        [
            (name, each.type if isinstance(each.type, type) else str, field(default=each.default))
            for name, each in OPTIONS.items()
        ],
        bases=(PolicyLossConfig,),
        namespace={"__module__": __name__},
    )


@dataclass
class NFTPolicyLossConfig(_WithOptions):
    """verl's `actor_rollout_ref.actor.policy_loss` with the options of `nft_loss`, and its defaults.

    verl refuses unknown options, so a run that sets one names this class in `policy_loss._target_`.
    """

    loss_mode: str = "nft"

    def __post_init__(self) -> None:
        """ValueError for an option that `nft_loss` refuses."""
        try_out(OBJECTIVE, _options(self))


@register_adv_est("nft")
def nft_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, index: Any, config: Any = None
) -> tuple[Tensor, Tensor]:
    """A = r − r̂ on an answer's tokens [B, T], 0 elsewhere: Dr. GRPO's advantage, and all that `nft_policy_loss` needs.

    `index` names each answer's question. ValueError for a reward that is no verdict (1 for right, 0 or −1 for wrong):
    a shaped reward doesn't say whether the answer was right.
    """
    rewards = token_level_rewards.sum(-1)
    verdict = (rewards == 1) | (rewards == 0) | (rewards == -1)
    if not verdict.all():
        raise ValueError(
            f"the advantage estimator nft got a reward of {rewards[~verdict][0].item():g}; it needs verdicts, 1 for a "
            "right answer and 0 or -1 for a wrong one: switch off what adds to them (algorithm.use_kl_in_reward, "
            "an overlong buffer, rewards for format)."
        )
    correct = rewards > 0
    groups = as_torch_index(index, device=rewards.device)
    pass_rate = (torch.bincount(groups, weights=correct.to(rewards.dtype)) / torch.bincount(groups))[groups]
    advantages = centred_advantage(correct, pass_rate.to(rewards.dtype))[:, None] * response_mask
    return advantages, advantages


@register_policy_loss("nft")
def nft_policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """`nft_loss` of each token [B, T], weighted by verl's rollout correction, reduced by verl's `agg_loss`.

    `advantages` come from `nft_advantage`: right answers have 1 − r̂ > 0, wrong ones −r̂ < 0. A group that is all right
    or all wrong has 0 and adds nothing to the sum, but it counts in verl's denominators unless
    `algorithm.filter_groups` drops it. ValueError for `ratio="sequence"`, which gives one term for each answer, unless
    the reduction sums over an answer's tokens.
    """
    options = _options(config.policy_loss)
    if options.get("ratio") == "sequence" and loss_agg_mode != "seq-mean-token-sum":
        raise ValueError(
            f"policy_loss.ratio is 'sequence' and loss_agg_mode is {loss_agg_mode!r}; "
            "one term an answer needs loss_agg_mode=seq-mean-token-sum."
        )
    # All tokens of an answer have the same advantage, with zeros between them from verl's padding and masks.
    advantage = advantages.gather(1, response_mask.int().argmax(1, keepdim=True))[:, 0]
    correct = advantage > 0
    pass_rate = torch.where(correct, 1 - advantage, -advantage)
    learnt = response_mask.bool() & (advantage != 0)[:, None]
    terms = OBJECTIVE.terms(Answers(log_prob, old_log_prob, learnt, correct, pass_rate), **options)
    loss = terms.per_token
    if rollout_is_weights is not None:
        loss = loss * rollout_is_weights
    reduced = agg_loss(loss, response_mask, loss_agg_mode, **config.global_batch_info)
    num_learnt, num_tokens = learnt.sum().clamp(min=1), response_mask.sum().clamp(min=1)
    metrics = {f"actor/nft_{name}": count / num_learnt for name, count in terms.counts.items()}
    metrics["actor/nft_informative"] = learnt.sum() / num_tokens
    metrics["actor/ppo_kl"] = masked_mean(old_log_prob - log_prob.detach(), response_mask)
    return reduced, {name: value.item() for name, value in metrics.items()}


def _options(config: Any) -> dict[str, Any]:
    """NFT's options in a policy loss's config; verl's config has none of them, so `nft_loss` uses its defaults."""
    return {name: getattr(config, name) for name in OPTIONS if hasattr(config, name)}
