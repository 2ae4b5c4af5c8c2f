"""What a task is: problems, the words around a question, and the verifier of its answers.

It knows neither where its problems came from nor how a model is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from negaware.types import FinishReason, Message, Problem, Verdict, Verifier

BOXED_FORM = r"\boxed{{answer}}"
"""How a model gives an answer whose prompt asks for a box; `{answer}` is the answer's place."""


@dataclass(frozen=True, slots=True)
class Task:
    """Problems with their prompt and verifier.

    `prompt` holds `{question}`, `answer_form` holds `{answer}`: the shortest text in which a model that follows
    the prompt gives that answer, and which the verifier must accept when the answer is the gold one.
    """

    name: str
    problems: Sequence[Problem]
    prompt: str
    verifier: Verifier
    system_prompt: str | None = None
    answer_form: str = BOXED_FORM
    judges_truncated: bool = False
    """Whether the verifier's word counts for answers that were cut off, too."""

    def messages(self, problem: Problem) -> list[Message]:
        r"""The conversation that asks `problem`. Other braces in the prompt (`\boxed{}`) stay as they are."""
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return [*system, {"role": "user", "content": self.prompt.replace("{question}", problem.question)}]

    def grade(
        self, texts: Sequence[str], problems: Sequence[Problem], finish_reasons: Sequence[FinishReason]
    ) -> list[Verdict]:
        """The verifier's verdicts, but that an answer cut off at its length limit is a wrong one, in training as in
        evaluation: whatever stands in it, the model hadn't come to its answer. Unless the task `judges_truncated`."""
        verdicts = self.verifier.grade(texts, problems)
        if self.judges_truncated:
            return verdicts
        return [
            replace(verdict, correct=False, reason="wrong") if verdict.correct and ended == "length" else verdict
            for verdict, ended in zip(verdicts, finish_reasons, strict=True)
        ]

    def as_answer(self, value: str) -> str:
        """A model's text that answers with `value`."""
        return self.answer_form.replace("{answer}", value)
