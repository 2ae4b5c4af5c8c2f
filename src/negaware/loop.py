"""The whole method: sample → verify → keep → pack → update → sync → evaluate → log. No maths stands here.

This is the only place where the sampling half and the learning half meet.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from negaware.config import Config
from negaware.estimates import Estimate
from negaware.evaluation.before import Before, before_text, in_turn, read_before
from negaware.evaluation.evaluate import EvaluationResult, evaluate, write_results
from negaware.evaluation.options import EvaluationSampling
from negaware.evaluation.outcome import Counts, outcome
from negaware.models.kernels import computation
from negaware.models.load import load_policy, pick_device
from negaware.models.lora import frozen_checksum
from negaware.models.parallel import ShardedModel, load_sharded_policy, named_weights
from negaware.models.products import compute_dtype
from negaware.models.save import save_model
from negaware.ranks import ALONE, Ranks
from negaware.resume import begin_to_write, fingerprint, last_state, open_run_folder, require_same_origin
from negaware.rollout.ask import Asker
from negaware.rollout.collect import Collector, NothingToLearnError, Rollout, call_seed, short_of_room
from negaware.rollout.engines import make_engine
from negaware.rollout.local import LocalEngine
from negaware.rollout.records import answer_records, groups_from_json, groups_to_json
from negaware.runs.folder import RunFolder, replace_file
from negaware.runs.health import collapse, vital_signs, what_became_of_it
from negaware.runs.interrupt import Interrupt
from negaware.runs.progress import Progress
from negaware.runs.report import write_report
from negaware.runs.trackers import Tracker, open_trackers, require_trackers
from negaware.tasks.golds import GoldCheck
from negaware.tasks.load import load_task
from negaware.tasks.options import DatasetOptions
from negaware.tasks.task import Task
from negaware.training.checkpoint import load_tensors, random_state, save_checkpoint, set_random_state
from negaware.training.step import LossSettings, Trainer

GOLDS_PATIENCE = 10.0
"""Seconds that a run's start waits for the check of its gold answers; then it goes on beside the first rollout."""


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
        folder, is_new, is_done = ranks.of_first(lambda: open_run_folder(config, resume, force, own))
        report = folder.path / "report.html"
        if is_done:
            if ranks.is_first and not report.exists():  # resumed after its end
                write_report([folder.path], report)
            return folder.path
        if ranks.is_first:
            require_trackers(config.run.trackers)
            if not is_new:  # before its state is read: whoever trains here now would move on from it
                stack.enter_context(folder.locked())
        state = None
        if not is_new:
            ranks.require_shared(folder.path)  # or some would take the state that they don't see for a broken one
            state = last_state(folder, config, ranks, own)
        start = 0 if state is None else int(state["step"])
        progress = stack.enter_context(Progress(config.run.steps, start_step=start, silent=not ranks.is_first))
        interrupt.announce = progress.note
        progress.phase("loading data and model", announce=True)
        run = _Run(config, folder, progress, stack, ranks, judges)
        if state is not None:
            require_same_origin(state.get("origin", {}), run.origin, folder.path)
        if ranks.is_first:
            if is_new:  # only now: data, model or tracker that isn't there has deleted nothing and left nothing behind
                stack.enter_context(folder.locked())
            how = computation(None if run.trainer.fused is None else run.trainer.fused.kernels, run.dtype)
            for sentence in begin_to_write(folder, config, state, how, is_new=is_new, force=force):
                progress.note(sentence)
            run.trackers = open_trackers(config.run.trackers, folder, config.resolved(), start_step=start)
            for tracker in run.trackers:
                stack.callback(tracker.close)
        if is_new:
            ranks.require_shared(folder.path)
        if state is not None:
            run.restore(state)
        run.hand_over(version=start)
        stack.callback(run.save_last_step, announce=True, at_the_end=True)  # however the run ends
        if run.before is None:
            progress.phase("evaluating before training", announce=True)
            run.before = run.begin(before)
            interrupt.stop_if_asked()
        for step in range(start + 1, config.run.steps + 1):
            clock = _Clock()
            progress.phase("sampling")
            rollout = run.next_rollout(step)
            clock.lap("sample")
            for sentence in rollout.shortcomings(config.rollout.questions):
                progress.note(sentence)
            run.golds.require()
            with interrupt.shield():
                progress.phase("training")
                run.engine.sleep()
                metrics = run.trainer.step(rollout.groups, call_seed(config.run.seed, step, -2), progress.advance)
                run.hand_over(version=step)
                clock.lap("train")
                metrics["train/tokens_per_second"] = metrics["train/num_tokens"] / clock.seconds["time/train"]
                metrics |= rollout.metrics | run.evaluate_on_the_way(step)
                clock.lap("evaluate")
                run.train_seconds += clock.total
                run.log(step, metrics | clock.seconds | {"time/step": clock.total}, answer_records(step, rollout))
                if step % config.run.checkpoint_every == 0 or step == config.run.steps:
                    run.save_last_step()
        interrupt.announce = lambda _: progress.note("The run is about to end.")
        progress.phase("evaluating after training", announce=True)
        after = run.judge("after")
        progress.phase("writing the model and the report", announce=True)
        folder.require_in_place()
        save_model(run.policy, folder.path / "model", run.dtype, ranks)
        summary = outcome(run.before, after, [problem.question for problem in run.held_out.problems]) | {
            "train_seconds": run.train_seconds,
            "total_seconds": folder.seconds,
            "processor_seconds": folder.processor_seconds,
            "steps": config.run.steps,
        }
        if ranks.is_first:
            folder.write_summary(summary)
            write_report([folder.path], report)
        ranks.meet()  # the others wait for the first, so that all end well or none
    return folder.path


class _Run:
    """What a run is made of, and what of it a checkpoint holds."""

    def __init__(
        self, config: Config, folder: RunFolder, progress: Progress, stack: ExitStack, ranks: Ranks, judges: Path
    ) -> None:
        self.config, self.folder, self.progress, self.ranks = config, folder, progress, ranks
        training, rollout = config.training, config.rollout
        device = ranks.device(pick_device(config.device))
        self.dtype = compute_dtype(training.compute_dtype, device)
        if ranks.size == 1 and training.offload == "cpu":
            progress.note(
                "training.offload is cpu, but one process has no shards to keep there: weights stay where they are"
            )
        sources = config.task, config.evaluation.task
        tasks = [load_task(each, config.data_dir, (judges, Path())) for each in sources]
        for task in tasks:
            stack.callback(task.verifier.close)
        self.task, self.held_out = tasks
        unaudited = [
            (each.path, task)
            for each, task in zip(sources, tasks, strict=True)
            if ranks.is_first and isinstance(each, DatasetOptions) and not each.verifier
        ]
        self.golds = GoldCheck(unaudited)
        stack.callback(self.golds.stop)
        sharded: ShardedModel | None = None
        name, lora = config.model.name, config.model.lora
        if ranks.size == 1:
            # float32: the trainer makes the copy that computes. What LoRA freezes is only ever that copy.
            self.policy = load_policy(name, torch.float32 if lora is None else self.dtype, device, lora)
        else:
            self.policy, sharded = load_sharded_policy(name, ranks, device, self.dtype, training.offload == "cpu", lora)
        self.engine = make_engine(rollout, self.policy, name, self.dtype, device, folder.path, ranks)
        codec = self.policy.codec
        self.asker = Asker(self.engine, codec.encode, codec.decode, ranks, rollout.ranks_per_engine)
        self.collector = Collector(
            self.asker,
            self.task,
            rollout.params(codec.stop_token_ids, self.policy.max_tokens),
            rollout,
            config.run.seed,
            config.objective.teaching_rates if rollout.filter == "none" else (),
        )
        held_out = [codec.encode(self.held_out.messages(problem)) for problem in self.held_out.problems]
        params = config.evaluation.final.params(codec.stop_token_ids, self.policy.max_tokens)
        for sentence in self.collector.left_out_or_short() + short_of_room(self.held_out.name, held_out, params):
            progress.note(sentence)
        objective, settings, reduction = config.objective.entry, config.objective.options, config.objective.reduction
        loss = LossSettings(objective, settings, rollout.temperature, rollout.max_new_tokens, reduction)
        steps, questions = config.run.steps, rollout.questions
        self.trainer = Trainer(self.policy.model, loss, training, steps, ranks, sharded, questions)
        self.trackers: list[Tracker] = []
        self.before: dict[str, Counts] | None = None
        self.train_seconds = 0.0
        self.origin = {
            "the problems of task": fingerprint(self.task.problems),
            "the problems of evaluation.task": fingerprint(self.held_out.problems),
            "the weights under the adapters": str(sum(ranks.gather(frozen_checksum(self.policy.model))) % 2**64),
        }
        """What a checkpoint doesn't hold, though the run depends on it, each with its fingerprint."""
        self.history: list[dict[str, Any]] = []
        """Of each finished step, what `runs/health.py` looks at."""
        self.last_state: dict[str, Any] | None = None
        """Where the run stood after the last finished step; with the optimizer's tensors it makes a checkpoint."""
        self.saved_step: int | None = None
        self.checkpoints = folder.path / "checkpoints"
        self.golds.require(GOLDS_PATIENCE)

    def begin(self, kept: Path | None) -> dict[str, Counts]:
        """The evaluation before training and step 0's line: as another run has kept them there, else made here."""
        with ExitStack() as stack:
            if kept and self.ranks.is_first:
                stack.enter_context(in_turn(kept))
            found = self.ranks.of_first(lambda: kept and read_before(kept))
            if not found:
                found = Before(self.judge("before"), self.evaluate_on_the_way(0))
            if self.ranks.is_first:
                for place in filter(None, (kept, self.folder.path / "evaluations" / "before.json")):
                    replace_file(place, before_text(found))
        self.before = found.counts  # a checkpoint of step 0 holds it
        self.log(0, dict(found.metrics))
        return found.counts

    def judge(self, moment: str) -> dict[str, Counts]:
        """Right answers at temperature 0 and of avg@k, on all held-out problems, written problem by problem."""
        final = self.config.evaluation.final
        greedy = final.model_copy(update={"temperature": 0.0, "completions": 1})
        found: dict[str, Counts] = {}
        for name, sampling in (("greedy_accuracy", greedy), (f"avg_at_{final.completions}", final)):
            result = self._evaluate(self.held_out, sampling, is_first=moment == "before")
            for sentence in filter(None, (result.unjudged, result.all_truncated)):
                self.progress.note(f"{sentence} (evaluations/{moment}-{name}.jsonl has all)")
            if self.ranks.is_first:
                self.folder.require_in_place()
                write_results(result, self.folder.path / "evaluations" / f"{moment}-{name}.jsonl")
            if moment == "before":  # later there is a run to lose
                result.require_judged("Mend the judge, then go on with --resume.")
            found[name] = {"num_completions": result.num_completions, "num_correct": result.num_correct}
        return found

    def evaluate_on_the_way(self, step: int) -> dict[str, float]:
        """The held-out accuracy of this step, if it is due: at step 0, every so many steps, and at the last."""
        during = self.config.evaluation.during
        if during is None or (step % during.every and step != self.config.run.steps):
            return {}
        self.progress.phase("evaluating")
        few = replace(self.held_out, problems=self.held_out.problems[: during.num_problems])
        accuracy = self._evaluate(few, during, is_first=step == 0).avg_at_k
        if step == 0 and accuracy.caution:
            self.progress.note(f"held-out accuracy on the way: {accuracy.caution}")
        return accuracy_metrics(accuracy)

    def next_rollout(self, step: int) -> Rollout:
        """The step's batch. NothingToLearnError, with what the run's own history says of it, if there is none."""
        try:
            return self.collector.next_rollout(step, self.progress.advance)
        except NothingToLearnError as error:
            rate = self.config.training.learning_rate
            raise error.because(what_became_of_it(self.history, error.pass_rate, rate)) from None

    def hand_over(self, version: int) -> None:
        """Gives the engine the weights that were trained, unless it samples with that very model."""
        has_them = isinstance(self.engine, LocalEngine) and self.engine.model is self.policy.model
        self.engine.load_weights(() if has_them else named_weights(self.policy.model, self.dtype), version)

    def log(self, step: int, metrics: dict[str, float], answers: Iterable[dict[str, Any]] = ()) -> None:
        """Writes a finished step's metrics everywhere they go, its answers first."""
        if self.ranks.is_first:
            if step:
                self.folder.write_answers(step, answers)
            self.folder.log(step, metrics)
        self.history.append(vital_signs({"step": step, **metrics}))
        self.last_state = {
            "step": step,
            "config": self.config.resolved(),
            "origin": self.origin,
            "metrics": self.folder.logged,
            "num_optimizer_steps": self.trainer.optimizer.num_steps_done,
            "position": self.collector.state.position,
            "surplus": self.collector.state.surplus,  # with their tokens in what is written
            "num_barren": self.collector.state.num_barren,
            "before": self.before,
            "train_seconds": self.train_seconds,
            "random": random_state(),
        }
        self.progress.step_done(step, metrics)
        if sentence := collapse(self.history, self.config.training.learning_rate):
            self.progress.note(sentence)
        for tracker in self.trackers:  # last: one that fails ends the run, and a single process can still save its step
            tracker.log(step, metrics)

    def save_last_step(self, announce: bool = False, at_the_end: bool = False) -> None:
        """Writes a checkpoint of the last finished step, unless that was done or a later step has begun to train.

        At the end of several ranks it is left out if not all of them have come here, from the same step.
        """
        state, optimizer = self.last_state, self.trainer.optimizer
        if (
            state is None
            or state["step"] == self.saved_step
            or state["num_optimizer_steps"] != optimizer.num_steps_done
        ):
            return
        if at_the_end and not self.ranks.all_reach(f"leaving after step {state['step']}"):
            return
        self.folder.require_in_place()
        self.progress.phase(f"writing a checkpoint of step {state['step']}", announce=announce)
        self.saved_step = state["step"]  # also if the disk is full: a second attempt would end as the first
        keep = self.config.run.keep_checkpoints
        written = state | {"surplus": groups_to_json(state["surplus"], self.ranks)}
        save_checkpoint(self.checkpoints, state["step"], optimizer.tensors(), written, keep, self.ranks)

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to the checkpoint of this state."""
        optimizer = self.trainer.optimizer
        self.last_state, self.saved_step = state, state["step"]
        load_tensors(self.checkpoints, state["step"], optimizer.tensors(), self.ranks)
        optimizer.sync_model()
        optimizer.num_steps_done, optimizer.rollouts_done = state["num_optimizer_steps"], state["step"]
        self.collector.state.position = state["position"]
        self.collector.state.surplus = groups_from_json(state["surplus"], self.ranks)
        self.collector.state.num_barren = state.get("num_barren", 0)
        self.before, self.train_seconds = state["before"], state["train_seconds"]
        self.history = [vital_signs(line) for line in state.get("metrics", ())]
        set_random_state(state["random"])

    def _evaluate(self, task: Task, sampling: EvaluationSampling, is_first: bool) -> EvaluationResult:
        codec = self.policy.codec
        params = sampling.params(codec.stop_token_ids, self.policy.max_tokens)
        own = self.config.evaluation.seed if is_first else None
        seed = call_seed(self.config.run.seed if own is None else own, 0, -3)
        return evaluate(self.asker, task, params, sampling.completions, seed, self.progress.advance)


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


def accuracy_metrics(estimate: Estimate) -> dict[str, float]:
    """An accuracy with its interval and the number of different questions behind it, as a step's metrics."""
    names = {"value": "accuracy", "low": "accuracy_low", "high": "accuracy_high", "num_questions": "num_questions"}
    return {f"evaluation/{name}": float(getattr(estimate, key)) for key, name in names.items()}
