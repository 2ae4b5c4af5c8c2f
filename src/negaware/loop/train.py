"""The whole method: sample → verify → keep → pack → update → sync → evaluate → log. No maths stands here."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import torch

from negaware.config import Config
from negaware.evaluation.outcome import outcome
from negaware.loop.held_out import HeldOut
from negaware.loop.parts import Parts
from negaware.loop.resume import begin_to_write, last_state, open_run_folder, require_same_origin
from negaware.loop.state import RunState
from negaware.models.decoder import computation
from negaware.models.save import save_model
from negaware.ranks import ALONE, Ranks
from negaware.rollout.collect import NothingToLearnError
from negaware.rollout.records import answer_records
from negaware.runs.interrupt import Interrupt
from negaware.runs.progress import Progress
from negaware.runs.report import write_report
from negaware.runs.trackers import open_trackers, require_trackers
from negaware.seeds import mini_batch_seed


def train(
    config: Config,
    *,
    resume: bool = False,
    force: bool = False,
    ranks: Ranks = ALONE,
    judges: Path = Path(),
    before: Path | None = None,
) -> Path:
    """Runs the config to its end and returns the run's folder. On several ranks all call it, and the first one writes.

    A judge of one's own is looked for in the folder `judges`, the config's, and then in the current one; so is a loss
    that a run to be resumed had. The evaluation before training is taken from the file `before`, and kept there by the
    first run that finds none.

    Raises ValueError or OSError for what the user can mend, KeyboardInterrupt after Ctrl-C. The run can then go on from
    the last finished step; from the last checkpoint, if the weights had moved on since (a loss that wasn't finite after
    a step's first mini-batch, a disk that was full after its training, a process that was killed).
    """
    torch.manual_seed(config.run.seed)
    own = (judges, Path())
    with ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt(None if ranks.size == 1 else ranks.any).watch())
        folder, is_new, is_done = ranks.from_first(lambda: open_run_folder(config, resume, force, own))
        report = folder.path / "report.html"
        if is_done:
            if ranks.is_first and not report.exists():  # resumed after its end
                write_report([folder.path], report)
            return folder.path
        if ranks.is_first:
            require_trackers(config.run.trackers)
            if not is_new:  # before its state is read: whoever trains here now would move on from it
                stack.enter_context(folder.locked())
        saved = None
        if not is_new:
            ranks.require_shared(folder.path)  # or some would take the state that they don't see for a broken one
            saved = last_state(folder, config, ranks, own)
        start = 0 if saved is None else int(saved["step"])
        progress = stack.enter_context(Progress(config.run.steps, start_step=start, silent=not ranks.is_first))
        interrupt.announce = progress.note
        progress.phase("loading data and model", announce=True)
        run = Parts(config, folder.path, progress.note, stack, ranks, judges)
        held_out = HeldOut(config, run, folder, progress, ranks)
        state = RunState(config, run, folder, progress, ranks)
        if saved is not None:
            require_same_origin(saved.get("origin", {}), run.origin, folder.path)
        if ranks.is_first:
            if is_new:  # only now: data, model or tracker that isn't there has deleted nothing and left nothing behind
                stack.enter_context(folder.locked())
            how = computation(run.trainer.decoder, run.dtype)
            for sentence in begin_to_write(folder, config, saved, how, is_new=is_new, force=force):
                progress.note(sentence)
            state.trackers = open_trackers(config.run.trackers, folder, config.resolved(), start_step=start)
            for tracker in state.trackers:
                stack.callback(tracker.close)
        if is_new:
            ranks.require_shared(folder.path)
        if saved is not None:
            state.restore(saved)
        run.hand_over(version=start)
        stack.callback(state.save, announce=True, at_the_end=True)  # however the run ends
        if state.before is None:
            progress.phase("evaluating before training", announce=True)
            found = held_out.before(before)
            state.before = found.counts
            state.finish_step(0, dict(found.metrics))
            interrupt.stop_if_asked()
        for step in range(start + 1, config.run.steps + 1):
            clock = _Clock()
            progress.phase("sampling")
            try:
                rollout = run.collector.next_rollout(step, progress.advance)
            except NothingToLearnError as error:
                raise state.explained(error) from None
            clock.lap("sample")
            for sentence in rollout.shortcomings(config.rollout.questions):
                progress.note(sentence)
            run.golds.require()
            with interrupt.shield():
                progress.phase("training")
                run.engine.sleep()
                metrics = run.trainer.step(rollout.groups, mini_batch_seed(config.run.seed, step), progress.advance)
                run.hand_over(version=step)
                clock.lap("train")
                metrics["train/tokens_per_second"] = metrics["train/num_tokens"] / clock.seconds["time/train"]
                metrics |= rollout.metrics | held_out.on_the_way(step)
                clock.lap("evaluate")
                state.train_seconds += clock.total
                metrics |= clock.seconds | {"time/step": clock.total}
                state.finish_step(step, metrics, answer_records(step, rollout))
                if step % config.run.checkpoint_every == 0 or step == config.run.steps:
                    state.save()
        interrupt.announce = lambda _: progress.note("The run is about to end.")
        progress.phase("evaluating after training", announce=True)
        after = held_out.judge("after")
        progress.phase("writing the model and the report", announce=True)
        folder.require_in_place()
        save_model(run.policy, folder.path / "model", run.dtype, ranks)
        summary = outcome(state.before, after, [problem.question for problem in run.held_out.problems]) | {
            "train_seconds": state.train_seconds,
            "total_seconds": folder.seconds,
            "processor_seconds": folder.processor_seconds,
            "steps": config.run.steps,
        }
        if ranks.is_first:
            folder.write_summary(summary)
            write_report([folder.path], report)
        ranks.meet()  # the others wait for the first, so that all end well or none
    return folder.path


class _Clock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = self._lap_began = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[f"time/{name}"], self._lap_began = now - self._lap_began, now

    @property
    def total(self) -> float:
        return time.perf_counter() - self._began
