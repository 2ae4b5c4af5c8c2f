"""What a rollout looks like outside the process: answers as the run folder keeps them, groups as a checkpoint does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from negaware.rollout.collect import Rollout
from negaware.types import Completion, Group, Problem, Verdict


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
                "num_tokens": len(completion.token_ids),
                "trained": completion.seed in trained,
            } | ({} if reward is None else {"reward": reward})


def group_from_json(data: dict[str, Any]) -> Group:
    """A group as `dataclasses.asdict` and JSON left it."""
    completions = (
        Completion(**one | {"token_ids": tuple(one["token_ids"]), "logprobs": tuple(one["logprobs"])})
        for one in data["completions"]
    )
    verdicts = (Verdict(**one) for one in data["verdicts"])
    problem, prompt_ids = Problem(**data["problem"]), tuple(data["prompt_ids"])
    rewards = None if data.get("rewards") is None else tuple(data["rewards"])
    return Group(problem, prompt_ids, tuple(completions), tuple(data["texts"]), tuple(verdicts), rewards)
