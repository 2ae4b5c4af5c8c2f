"""What a task is: problems, their prompt, and the verifier of their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from negaware.types import FinishReason, Message, Problem, Verdict, Verifier

BOXED_FORM = r"\boxed{{answer}}"
"""An answer to a prompt that asks for a box."""


@dataclass(frozen=True, slots=True)
class Task:
    """Problems with their prompt and verifier.

    `prompt` holds `{question}`. `answer_form` holds `{answer}`: the shortest text in which a model that follows the
    prompt gives an answer. With the gold answer the verifier must call it right.
    """

    name: str
    problems: Sequence[Problem]
    prompt: str
    verifier: Verifier
    system_prompt: str | None = None
    answer_form: str = BOXED_FORM
    judges_truncated: bool = False
    """Whether the verifier's verdict counts for answers that were cut off, too."""

    def messages(self, problem: Problem) -> list[Message]:
        r"""The conversation that asks `problem`. Other braces in the prompt (`\boxed{}`) stay as they are."""
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": self.prompt.replace("{question}", problem.question)}]

    def grade(
        self, texts: Sequence[str], problems: Sequence[Problem], finish_reasons: Sequence[FinishReason]
    ) -> list[Verdict]:
        """The verifier's verdicts, but an answer cut off at its length limit is wrong, unless `judges_truncated`."""
        verdicts = self.verifier.grade(texts, problems)
        if self.judges_truncated:
            return verdicts
        return [
            replace(verdict, correct=False, reason="wrong") if verdict.correct and ended == "length" else verdict
            for verdict, ended in zip(verdicts, finish_reasons, strict=True)
        ]

    def as_answer(self, value: str) -> str:
        """The text of a model that answers with `value`."""
        return self.answer_form.replace("{answer}", value)
