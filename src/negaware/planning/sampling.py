"""How fast engines sample answers of independent lengths, as averages in closed form: one batch, or across updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from negaware.planning.cost import decode_seconds, prefill_seconds
from negaware.planning.lengths import Lengths
from negaware.planning.memory import rows_at_once
from negaware.planning.setting import Machine, Setting

AGES = 512  # the number of parts of an answer's age, from 0 to the greatest length
WAVES = 16  # after so many answers in each row, the ages of a full batch no longer change
TINY = 1e-9  # fewer answers count as none
MOMENTS = 32  # the number of times at which questions that wait for a row are taken to begin
MOST_UPDATES = 256  # an answer is followed through at most so many updates


class Sampling:
    """The sampling of a step: what each engine decodes, how fast, and how long answers are."""

    def __init__(self, setting: Setting, machine: Machine, lengths: Lengths, batches: int) -> None:
        """`batches`: how many batches of questions may be under way."""
        self.setting, self.machine, self.lengths, self.batches = setting, machine, lengths, batches
        whole = replace(setting, questions=batches * setting.questions)
        self.rows = min(rows_at_once(whole, machine), whole.sequences_an_engine)
        """The most answers that an engine decodes at once."""
        self.answers = setting.questions * setting.completions / setting.engines
        """Answers that an engine samples for a batch."""
        self.batch_tokens = setting.questions * setting.completions * lengths.mean
        """Answer tokens of a batch, over all engines."""
        self.context = setting.prompt_tokens + lengths.mean_square / (2 * lengths.mean)
        """Mean number of tokens before a row's next one: the question, and E[L²] / 2 E[L]."""
        questions = self.answers / setting.completions
        self.questions_seconds = float(prefill_seconds(setting, machine, questions * setting.prompt_tokens))
        """Seconds to prefill a batch's questions."""

    def step_seconds(self, rows: float) -> float:
        """Seconds of a decode step of so many rows, of all ages."""
        return float(decode_seconds(self.setting, self.machine, rows, rows * self.context))

    def alone(self) -> tuple[float, float]:
        """Seconds until all engines have sampled their part of a batch, and the mean number of rows of an engine.

        It follows the mean number of answers of each age: answers begin in free rows, and P(L > age) of them go on.
        """
        answers: float = self.setting.sequences_an_engine
        rows = min(self.rows, answers)
        followed = min(answers, WAVES * rows)
        width = self.lengths.longest / AGES
        ages = np.arange(AGES) * width
        alive = np.diff(self.lengths.drawn(np.append(ages, self.lengths.longest))) / width
        waiting, begun = followed, np.zeros(0)
        while waiting > TINY:
            recent = begun[:-AGES:-1]
            free = rows - recent @ alive[1 : len(recent) + 1]
            begun = np.append(begun, min(waiting, free / alive[0]))
            waiting -= begun[-1]
        running = np.convolve(begun, alive)
        context = np.convolve(begun, alive * (self.setting.prompt_tokens + ages + width / 2))
        none_left = np.exp(self.setting.engines * np.convolve(begun, np.log1p(-np.minimum(alive, 1 - TINY))))
        steps = width * (1 - none_left)
        unfollowed = (answers - followed) * self.lengths.mean / rows
        decoding = float(steps @ decode_seconds(self.setting, self.machine, running, context))
        total = decoding + unfollowed * self.step_seconds(rows)
        return total + self.questions_seconds, answers * self.lengths.mean / float(steps.sum() + unfollowed)


class GoingOn:
    """Sampling that goes on across updates: an engine decodes `rows` answers on average, ranks train `pause` seconds.

    With `overlaps` engines sample in these seconds too; without it they wait.
    """

    def __init__(self, sampling: Sampling, rows: float, pause: float, overlaps: bool) -> None:
        self.sampling, self.rows, self.pause, self.overlaps = sampling, rows, pause, overlaps
        answers, lengths = sampling.answers, sampling.lengths
        self.decode_step = sampling.step_seconds(rows)
        # A batch's questions, and after the update all answers that are under way.
        prefills = sampling.questions_seconds
        prefills += float(prefill_seconds(sampling.setting, sampling.machine, rows * sampling.context))
        self.busy = answers * lengths.mean / rows * self.decode_step + prefills
        """Seconds in which an engine samples the tokens of a batch."""
        self.period = max(self.busy, pause) if overlaps else self.busy + pause
        """Seconds from one update to the next."""
        self.steps = ((self.period if overlaps else self.busy) - prefills) / self.decode_step
        """Decode steps from one update to the next."""
        self.is_full = rows == sampling.rows < sampling.batches * answers
        """Whether every row is always in use, so that answers begin at any time."""
        later = self.steps * np.arange(1, min(lengths.longest / self.steps + 1, MOST_UPDATES))
        free = sampling.rows - answers * float(lengths.survival(later).sum())
        self.at_once = 0.0 if self.is_full else min(1.0, max(0.0, free) / answers)
        """The fraction of a batch's answers that find a free row when they are asked."""
        late = (1 - self.at_once) * answers * lengths.mean / sampling.rows
        self.begin_late = self.steps if self.is_full else late
        """Decode steps until the last of a batch's answers begins."""

    def ages(self, first: float) -> np.ndarray:
        """Decode steps [U, 1 + B] since questions began, `first` steps after the last update.

        A row of the array is an update, the last one first: questions asked at an earlier update are older by `steps`.
        Column 0 is for questions that begin at once, the others are for questions that wait for a row of the engine.
        """
        since = first + self.steps * np.arange(min(self.sampling.lengths.longest / self.steps + 2, MOST_UPDATES))
        return since[:, None] - self.begin_late * np.append(0, (np.arange(MOMENTS) + 0.5) / MOMENTS)

    def mean(self, by_age: np.ndarray) -> float:
        """The mean over a batch's answers, summed over updates, of a value given for each of `ages`."""
        return float((self.at_once * by_age[:, 0] + (1 - self.at_once) * by_age[:, 1:].mean(1)).sum())

    def unfinished(self, ages: np.ndarray) -> float:
        """Number of unfinished questions, in batches: P(the longest of K > age), summed over updates."""
        finished = 1 - self.sampling.lengths.survival(ages)
        return self.mean(1 - finished**self.sampling.setting.completions)

    def is_possible(self, staleness: int) -> bool:
        """Whether a batch is finished when the ranks need it, with at most `staleness` others under way."""
        waited = self.period - self.pause if self.overlaps else self.period
        return self.unfinished(self.ages(self.steps * waited / self.period)) <= staleness

    def held(self, ages: np.ndarray) -> float:
        """Tokens of unfinished questions, in batches: E[min(L, age); longest of K > age] / E[L]."""
        lengths = self.sampling.lengths
        ages = np.maximum(ages, 0)
        drawn, finished = lengths.drawn(ages), 1 - lengths.survival(ages)
        tokens_of_finished = finished ** (self.sampling.setting.completions - 1) * (drawn - ages * (1 - finished))
        return self.mean(drawn - tokens_of_finished) / lengths.mean

    def staleness(self, limit: int) -> float:
        """Mean number of updates that a token waits: tokens held at an update, divided by those trained in a step."""
        ages = self.ages(self.steps)
        finished = 0.0
        if self.overlaps:  # batches that wait to be trained
            finished = self.pause / self.period if self.is_full else limit - self.unfinished(ages)
        return min(limit, self.held(ages) + finished)


def going_on(sampling: Sampling, staleness: int, pause: float, overlaps: bool) -> GoingOn:
    """Sampling with as many rows as possible: all of an engine's, unless questions are too few or ranks too slow."""

    def with_rows(rows: float) -> GoingOn:
        return GoingOn(sampling, rows, pause, overlaps)

    def largest(most: float, is_too_many: Callable[[GoingOn], bool]) -> float:
        if not is_too_many(with_rows(most)):
            return most
        low = 0.0
        for _ in range(50):
            middle = (low + most) / 2
            low, most = (low, middle) if is_too_many(with_rows(middle)) else (middle, most)
        return low

    rows = largest(sampling.rows, lambda found: overlaps and found.busy < pause)
    return with_rows(largest(rows, lambda found: not found.is_possible(staleness)))
