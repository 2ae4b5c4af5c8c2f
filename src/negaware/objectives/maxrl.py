"""Maximum Likelihood Reinforcement Learning: a policy gradient divided by the pass rate: hard questions count most.

On-policy it is NFT with prompt weight `maxrl`.
"""

from __future__ import annotations

from negaware.objectives.clipped import Clip, ClipHigh, clipped_gradient
from negaware.objectives.contract import Answers, Terms, objective
from negaware.objectives.credit import divided_by_mean_advantage


@objective(reduction="token_mean", paper="arXiv 2602.02710")
def maxrl(answers: Answers, *, clip: Clip = 0.2, clip_high: ClipHigh = None) -> Terms:
    """Maximum Likelihood Reinforcement Learning.

    −min(R A, clip(R, 1 − c, 1 + c) A) with A = (r − mean)/mean, for each token. The paper makes one update a rollout,
    where the clip never acts. Counted: as GRPO's.
    """
    return clipped_gradient(answers, divided_by_mean_advantage(answers.correct, answers.pass_rate), clip, clip_high)
