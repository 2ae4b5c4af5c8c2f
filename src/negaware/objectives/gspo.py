"""Group Sequence Policy Optimization: GRPO with the likelihood ratio of a whole answer, by its geometric mean."""

from __future__ import annotations

from typing import Annotated

from negaware.objectives.clipped import clipped_terms
from negaware.objectives.contract import Answers, Option, Terms, objective
from negaware.objectives.credit import standardised
from negaware.objectives.ops import answer_lengths, log_ratio


@objective(reduction="sequence_mean", paper="arXiv 2507.18071")
def gspo(
    answers: Answers,
    *,
    clip_low: Annotated[float, Option("The clip below 1, of an answer's mean ratio.", above=0)] = 3e-4,
    clip_high: Annotated[float, Option("The clip above 1, of an answer's mean ratio.", above=0)] = 4e-4,
) -> Terms:
    """Group Sequence Policy Optimization.

    −min(s A, clip(s, 1 − c, 1 + c') A) with s = exp(mean of log R over the answer) and A = (r − mean)/std: one term an
    answer, repeated at each of its tokens, so that their mean is the term. Counted: tokens of answers that the clip
    silences, and of answers whose mean exceeds the log-ratio cap.
    """
    log_ratios = log_ratio(answers.logprobs, answers.old_logprobs, answers.mask)
    lengths = answer_lengths(answers.mask)[:, None].to(log_ratios.dtype)
    means = (log_ratios.sum(-1, keepdim=True) / lengths).expand_as(log_ratios)
    return clipped_terms(answers, means, standardised(answers), clip_low, clip_high)
