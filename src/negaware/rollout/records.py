"""What a rollout looks like outside the process: answers as the run folder keeps them, groups as a checkpoint does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import starmap
from typing import Any

import numpy as np

from negaware.ranks import Ranks
from negaware.rollout.collect import Rollout
from negaware.types import Completion, Group, Problem, Span, Verdict


def answer_records(step: int, rollout: Rollout) -> Iterator[dict[str, Any]]:
    """Every answer sampled in a step, as the run folder keeps it."""
    trained = {done.seed for group in rollout.groups for done in group.completions}
    sampled = {done.seed for group in rollout.sampled for done in group.completions}
    carried = [group for group in rollout.groups if group.completions[0].seed not in sampled]
    for group in carried + rollout.sampled:
        rewards = group.rewards or (None,) * len(group.verdicts)
        for completion, text, verdict, reward in zip(
            group.completions, group.texts, group.verdicts, rewards, strict=True
        ):
            yield {
                "step": step,
                "problem_id": group.problem.id,
                "question": group.problem.question,
                "gold": group.problem.answer,
                "answer": text,
                "correct": verdict.correct,
                "reason": verdict.reason,
                "extracted": verdict.extracted,
                "pass_rate": group.pass_rate,
                "finish_reason": completion.finish_reason,
                "num_tokens": completion.num_tokens,
                "trained": completion.seed in trained,
            } | ({} if reward is None else {"reward": reward})


def groups_to_json(groups: Sequence[Group], ranks: Ranks) -> list[dict[str, Any]]:
    """The groups with their tokens, ready for a checkpoint: on the first rank, which has the texts; nothing elsewhere.

    Every rank must give the same ones.
    """
    here = {
        place: group.completions
        for place, group in enumerate(groups)
        if all(done.is_here for done in group.completions)
    }
    whole = {place: each for of_rank in ranks.to_first(here) for place, each in of_rank.items()}
    return [_to_json(replace(groups[place], completions=whole[place])) for place in sorted(whole)]


def groups_from_json(data: Sequence[Mapping[str, Any]], ranks: Ranks) -> list[Group]:
    """The groups of a checkpoint, each with its tokens on one rank, however many ranks wrote it."""
    groups = [_from_json(each) for each in data]
    for place, group in enumerate(groups):
        if place % ranks.size != ranks.rank:
            left = tuple(Completion.elsewhere(done.finish_reason, done.spans, done.seed) for done in group.completions)
            groups[place] = replace(group, completions=left)
    return groups


def _to_json(group: Group) -> dict[str, Any]:
    completions = [
        {
            "token_ids": done.token_ids.tolist(),
            "logprobs": done.logprobs.tolist(),
            "finish_reason": done.finish_reason,
            "spans": done.spans,
            "seed": done.seed,
        }
        for done in group.completions
    ]
    return asdict(replace(group, completions=())) | {"completions": completions}


def _from_json(data: Mapping[str, Any]) -> Group:
    completions = []
    for one in data["completions"]:
        # A checkpoint of before has one version for a whole answer.
        spans = one.get("spans") or [(one["version"], len(one["token_ids"]))]
        tokens, logprobs = np.array(one["token_ids"], np.int32), np.array(one["logprobs"], np.float32)
        completions.append(Completion(tokens, logprobs, one["finish_reason"], tuple(starmap(Span, spans)), one["seed"]))
    verdicts = tuple(Verdict(**one) for one in data["verdicts"])
    rewards = None if data.get("rewards") is None else tuple(data["rewards"])
    prompt_ids, texts = tuple(data["prompt_ids"]), tuple(data["texts"])
    return Group(Problem(**data["problem"]), prompt_ids, tuple(completions), texts, verdicts, rewards)
