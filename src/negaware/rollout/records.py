"""What a rollout looks like outside the process: answers as the run folder keeps them, groups as a checkpoint does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import starmap
from typing import Any

import numpy as np

from negaware.ranks import Ranks
from negaware.rollout.ahead import Begun
from negaware.rollout.collect import Rollout
from negaware.rollout.engine import Draft, Request, SamplingParams
from negaware.rollout.marking import Marked
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


def begun_to_json(begun: Sequence[Begun], ranks: Ranks) -> list[dict[str, Any]]:
    """Questions under way on each rank, ready for a checkpoint: on the first rank, nothing elsewhere.

    Of each answer what is drawn, and the verdicts on those finished.
    """
    here = [
        {
            "rank": ranks.rank,
            "index": each.index,
            "seeds": each.seeds,
            "drafts": [asdict(draft) for draft in each.request.drafts],
            "marked": [
                {"completion": _completion_to_json(done), "text": text, "verdict": asdict(verdict)}
                for done, text, verdict in each.marked
            ],
        }
        for each in begun
    ]
    return [one for of_rank in ranks.to_first(here) for one in of_rank]


def begun_from_json(
    data: Sequence[Mapping[str, Any]], prompts: Sequence[tuple[int, ...]], params: SamplingParams, ranks: Ranks
) -> list[Begun]:
    """This rank's questions under way of a checkpoint. What had neither a draft nor a verdict there is begun again."""
    begun = []
    for one in data:
        if one.get("rank", 0) % ranks.size != ranks.rank:
            continue
        marked = [
            Marked(_completion_from_json(each["completion"]), each["text"], Verdict(**each["verdict"]))
            for each in one["marked"]
        ]
        drafts = {each["seed"]: Draft(**each | {"spans": list(starmap(Span, each["spans"]))}) for each in one["drafts"]}
        left = [seed for seed in one["seeds"] if seed not in {each.completion.seed for each in marked}]
        request = Request(prompts[one["index"]], params, [drafts.get(seed) or Draft(seed) for seed in left])
        begun.append(Begun(one["index"], request, tuple(one["seeds"]), marked))
    return begun


def _to_json(group: Group) -> dict[str, Any]:
    completions = [_completion_to_json(done) for done in group.completions]
    return asdict(replace(group, completions=())) | {"completions": completions}


def _from_json(data: Mapping[str, Any]) -> Group:
    completions = tuple(map(_completion_from_json, data["completions"]))
    verdicts = tuple(Verdict(**one) for one in data["verdicts"])
    rewards = None if data.get("rewards") is None else tuple(data["rewards"])
    prompt_ids, texts = tuple(data["prompt_ids"]), tuple(data["texts"])
    return Group(Problem(**data["problem"]), prompt_ids, completions, texts, verdicts, rewards)


def _completion_to_json(done: Completion) -> dict[str, Any]:
    return {
        "token_ids": done.token_ids.tolist(),
        "logprobs": done.logprobs.tolist(),
        "finish_reason": done.finish_reason,
        "spans": done.spans,
        "seed": done.seed,
    }


def _completion_from_json(data: Mapping[str, Any]) -> Completion:
    # A checkpoint of before has one version for a whole answer.
    spans = data.get("spans") or [(data["version"], len(data["token_ids"]))]
    tokens, logprobs = np.array(data["token_ids"], np.int32), np.array(data["logprobs"], np.float32)
    return Completion(tokens, logprobs, data["finish_reason"], tuple(starmap(Span, spans)), data["seed"])
