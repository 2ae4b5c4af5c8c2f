"""Answers one by one: a run's sampling and training, walked in strides of decode steps, to hold the plan's averages to.

Each answer has a length and takes a row of an engine; questions are asked while fewer than a batch and `staleness` more
are under way; a question with a token that is too old is asked again. It shares with the plan only what a decode step,
a prefill and a training step take.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from negaware.planning.cost import decode_seconds, prefill_seconds
from negaware.planning.lengths import Lengths
from negaware.planning.setting import Machine, Setting


@dataclass(eq=False)
class Simulation:
    """A run with `setting`'s engines, each of `rows` rows, whose training takes `pause` seconds for a mean batch."""

    setting: Setting
    machine: Machine
    lengths: Lengths
    rows: int
    staleness: int
    pause: float
    overlaps: bool
    seed: int = 0
    stride: float = 1.0
    """Decode steps that are walked at once: a row that ends is free after them."""

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.seconds, self.version, self.num_dropped = 0.0, 0, 0
        engines = self.setting.engines
        self.left = np.zeros((engines, self.rows))  # tokens until a row's answer ends; 0: the row is free
        self.age = np.zeros((engines, self.rows))
        self.owner = np.zeros((engines, self.rows), int)  # the answer's question
        self.queues: list[deque[tuple[int, int]]] = [deque() for _ in range(engines)]  # questions and lengths
        self.load = np.zeros(engines, int)  # answers of an engine that aren't finished
        self.stall = np.zeros(engines)  # seconds of prefill that an engine has before it
        self.begun: list[int] = []  # questions, in the order in which they were asked
        # Of every question: answers that go on, the version that drew its first token (−1: none yet), its tokens, and
        # their versions' sum.
        self.missing, self.oldest = np.zeros(0, int), np.zeros(0, int)
        self.tokens, self.versions = np.zeros(0), np.zeros(0)

    def run(self, steps: int, settled: int) -> tuple[float, float]:
        """Seconds a step and mean staleness of a token, of the steps after `settled` ones."""
        start, waited, trained = 0.0, 0.0, 0.0
        mean = self.setting.questions * self.setting.completions * self.lengths.mean
        for step in range(steps):
            if step == settled:
                start = self.seconds
            self._drop_old()
            batch = self._sample()
            tokens = self.tokens[batch].sum()
            if step >= settled:
                waited += self.version * tokens - self.versions[batch].sum()
                trained += tokens
            self._train(self.pause * tokens / mean)
            self.version += 1
            again = ((self.left > 0) * (self.setting.prompt_tokens + self.age)).sum(1)
            self.stall += prefill_seconds(self.setting, self.machine, again)
        return (self.seconds - start) / (steps - settled), waited / trained

    def _sample(self) -> list[int]:
        self._ask((1 + self.staleness) * self.setting.questions - len(self.begun))
        while True:
            done = [question for question in self.begun if not self.missing[question]]
            if len(done) >= self.setting.questions:
                batch = done[: self.setting.questions]
                self.begun = sorted(set(self.begun) - set(batch))
                return batch
            self._walk(np.inf)

    def _train(self, seconds: float) -> None:
        end = self.seconds + seconds
        while self.overlaps and self.seconds < end and self.load.any():
            self._walk(end - self.seconds)
        self.seconds = end

    def _ask(self, number: int) -> None:
        answers = self.setting.completions
        new = range(len(self.missing), len(self.missing) + number)
        self.missing = np.append(self.missing, np.full(number, answers))
        self.oldest = np.append(self.oldest, np.full(number, -1))
        self.tokens, self.versions = (np.append(each, np.zeros(number)) for each in (self.tokens, self.versions))
        for question in new:
            self.begun.append(question)
            engine = int(self.load.argmin())
            lengths = self.random.choice(self.lengths.values, answers)
            self.queues[engine].extend((question, int(length)) for length in lengths)
            self.load[engine] += answers

    def _drop_old(self) -> None:
        oldest = self.oldest[self.begun]
        old = {q for q, first in zip(self.begun, oldest, strict=True) if 0 <= first < self.version - self.staleness}
        self.num_dropped += len(old)
        self.begun = [question for question in self.begun if question not in old]
        dropped = (self.left > 0) & np.isin(self.owner, list(old))
        self.left[dropped] = 0
        self.load -= dropped.sum(1)
        for engine, queue in enumerate(self.queues if old else []):
            self.queues[engine] = deque(entry for entry in queue if entry[0] not in old)
            self.load[engine] -= len(queue) - len(self.queues[engine])

    def _fill(self) -> None:
        waits = np.array([bool(queue) for queue in self.queues])
        for engine, row in zip(*np.nonzero((self.left == 0) & waits[:, None]), strict=True):
            if self.queues[engine]:
                question, length = self.queues[engine].popleft()
                if self.oldest[question] < 0:
                    self.oldest[question] = self.version
                    self.stall[engine] += prefill_seconds(self.setting, self.machine, self.setting.prompt_tokens)
                self.owner[engine, row], self.left[engine, row], self.age[engine, row] = question, length, 0

    def _walk(self, most: float) -> None:
        """A stride of an average engine, at most so many seconds."""
        self._fill()
        runs = self.left > 0
        num_rows = runs.sum(1)
        context = (runs * (self.setting.prompt_tokens + self.age)).sum(1)
        step = np.asarray(decode_seconds(self.setting, self.machine, num_rows, context))
        seconds = min(most, self.stride * step[num_rows > 0].mean())
        stalled = np.minimum(self.stall, seconds)
        self.stall -= stalled
        tokens = np.minimum(((seconds - stalled) / step)[:, None] * runs, self.left)
        self.left -= tokens
        self.left[self.left < 1e-6] = 0
        self.age += tokens
        self.seconds += seconds
        questions, drawn = self.owner[runs], tokens[runs]
        np.add.at(self.tokens, questions, drawn)
        np.add.at(self.versions, questions, drawn * self.version)
        ended = runs & (self.left == 0)
        np.subtract.at(self.missing, self.owner[ended], 1)
        self.load -= ended.sum(1)
