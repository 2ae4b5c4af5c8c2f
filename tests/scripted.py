"""An engine that answers as it is told to, in the first step after it was asked."""

from collections.abc import Callable, Sequence

from negaware.rollout.engine import Draft, Engine, Request
from negaware.types import FinishReason


class ScriptedEngine(Engine):
    """`answers(prompt, number asked before)`: the tokens of each completion, and how it ended."""

    def __init__(self, answers: Callable[[Sequence[int], int], Sequence[tuple[Sequence[int], FinishReason]]]) -> None:
        self.answers = answers
        self.version = 0
        self.asked: list[Request] = []
        self.seeds: list[int] = []
        self.calls: list[int] = []
        """Questions answered by each step."""
        self.waiting: list[Request] = []

    def submit(self, request: Request) -> None:
        self.asked.append(request)
        self.seeds += [draft.seed for draft in request.drafts]
        self.waiting.append(request)

    def step(self) -> int:
        before, num_tokens = len(self.asked) - len(self.waiting), 0
        for number, request in enumerate(self.waiting, before):
            answers = self.answers(request.prompt, number)
            for draft, (tokens, ended) in zip(list(request.drafts), answers, strict=False):
                num_tokens += self._finish(request, draft, tokens, ended)
        if self.waiting:
            self.calls.append(len(self.waiting))
        self.waiting = []
        return num_tokens

    def _finish(self, request: Request, draft: Draft, tokens: Sequence[int], ended: FinishReason) -> int:
        draft.token_ids, draft.logprobs = list(tokens), [0.0] * len(tokens)
        draft.stamp(self.version)
        request.finish(draft, ended)
        return len(tokens)

    def withdraw(self, requests=None):
        found = [request for request in self.waiting if requests is None or request in requests]
        self.waiting = [request for request in self.waiting if request not in found]
        return found

    def load_weights(self, named_weights, version):
        self.version = version

    def sleep(self):
        pass
