"""The whole method: sample → verify → keep → pack → update → sync → evaluate → log. No maths stands here.

This is the only place where the sampling half and the learning half meet.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from negaware.config import Config
from negaware.evaluation.evaluate import EvaluationResult, evaluate, write_results
from negaware.evaluation.options import EvaluationSampling
from negaware.models.load import COMPUTE_DTYPES, load_policy, pick_device, save_model
from negaware.objectives import OBJECTIVES
from negaware.rollout.collect import Collector, Rollout, call_seed, require_fit
from negaware.rollout.local import LocalEngine
from negaware.runs.folder import RunFolder
from negaware.runs.interrupt import Interrupt
from negaware.runs.progress import Progress
from negaware.runs.report import write_report
from negaware.runs.trackers import Tracker, open_trackers
from negaware.tasks.load import load_task
from negaware.tasks.task import Task
from negaware.training.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_tensors,
    random_state,
    read_state,
    save_checkpoint,
    set_random_state,
)
from negaware.training.step import LossSettings, Trainer
from negaware.types import Completion, Group, Problem, Verdict

FREE_TO_CHANGE = {"run.folder", "run.checkpoint_every", "run.keep_checkpoints", "run.trackers", "data_dir"}
"""What a resumed run may set otherwise than its checkpoint: it doesn't change what is learnt."""


def train(config: Config, *, resume: bool = False, force: bool = False) -> Path:
    """Runs the config to its end and returns the run's folder.

    Raises ValueError for what the user can mend; KeyboardInterrupt after Ctrl-C, with a checkpoint of the last step.
    """
    began = time.perf_counter()
    torch.manual_seed(config.run.seed)
    folder = _open_folder(config, resume, force)
    if folder.read_summary() is not None:
        return folder.path  # resumed after its end
    with ExitStack() as stack:
        run = _Run(config, folder, stack)
        start = run.resume() if resume else 0
        progress = stack.enter_context(Progress(config.run.steps, start_step=start))
        run.trackers = open_trackers(config.run.trackers, folder, config.resolved(), start_step=start)
        interrupt = Interrupt(progress.note)
        stack.enter_context(interrupt.watch())
        stack.enter_context(run.saved_on_interrupt(progress))
        if run.before is None:
            progress.phase("evaluating before training", announce=True)
            run.before = run.judge("before", progress)
            run.log(0, accuracy_metrics(run.before["greedy_accuracy"]), progress)
        for step in range(start + 1, config.run.steps + 1):
            clock = _Clock()
            progress.phase("sampling")
            rollout = run.collector.next_rollout(step, progress.advance)
            clock.lap("sample")
            with interrupt.shield():
                progress.phase("training")
                metrics = run.trainer.step(rollout.groups, call_seed(config.run.seed, step, -2), progress.advance)
                run.engine.load_weights(run.policy.model.named_parameters(), version=step)
                clock.lap("train")
                metrics["train/tokens_per_second"] = metrics["train/num_tokens"] / clock.seconds["time/train"]
                metrics |= rollout.metrics | run.evaluate_on_the_way(step, progress)
                clock.lap("evaluate")
                folder.write_answers(step, answer_records(step, rollout))
                run.train_seconds += clock.total
                run.log(step, metrics | clock.seconds | {"time/step": clock.total}, progress)
                if step % config.run.checkpoint_every == 0 or step == config.run.steps:
                    progress.phase("writing a checkpoint")
                    run.save(step)
        progress.phase("evaluating after training", announce=True)
        after = run.judge("after", progress)
        progress.phase("writing the model and the report", announce=True)
        save_model(run.policy, folder.path / "model")
        folder.write_summary(
            {
                "before": run.before,
                "after": after,
                "train_seconds": run.train_seconds,
                "total_seconds": run.seconds_before + time.perf_counter() - began,
                "steps": config.run.steps,
            }
        )
        write_report([folder.path], folder.path / "report.html")
    return folder.path


class _Run:
    """What a run is made of, and what of it a checkpoint holds."""

    def __init__(self, config: Config, folder: RunFolder, stack: ExitStack) -> None:
        self.config, self.folder = config, folder
        training, rollout = config.training, config.rollout
        self.task = _loaded(config.task, config, stack)
        self.held_out = _loaded(config.evaluation.task, config, stack)
        device = pick_device(config.device)
        self.policy = load_policy(config.model, COMPUTE_DTYPES[training.compute_dtype], device)
        self.engine = LocalEngine(self.policy.model, rollout.max_sequences)
        codec = self.policy.codec
        self.collector = Collector(
            self.engine,
            self.task,
            codec.encode,
            codec.decode,
            rollout.params(codec.stop_token_ids),
            rollout,
            config.run.seed,
            self.policy.max_tokens,
        )
        longest = max(s.max_new_tokens for s in (config.evaluation.final, config.evaluation.during) if s)
        held_out_prompts = [codec.encode(self.held_out.messages(problem)) for problem in self.held_out.problems]
        require_fit(held_out_prompts, longest, self.policy.max_tokens, self.held_out)
        objective = OBJECTIVES[config.objective.name]
        loss = LossSettings(objective, config.objective_options, rollout.temperature, rollout.max_new_tokens)
        self.trainer = Trainer(self.policy.model, loss, training, config.run.steps * training.optimizer_steps)
        self.trackers: list[Tracker] = []
        stack.callback(self._close_trackers)
        self.before: dict[str, Any] | None = None
        self.train_seconds = self.seconds_before = 0.0
        self.last_state: tuple[int, dict[str, Any]] | None = None

    def judge(self, moment: str, progress: Progress) -> dict[str, Any]:
        """Accuracy at temperature 0 and avg@k on all held-out problems, written problem by problem."""
        final = self.config.evaluation.final
        greedy = final.model_copy(update={"temperature": 0.0, "completions": 1})
        found: dict[str, Any] = {}
        for name, sampling in (("greedy_accuracy", greedy), (f"avg_at_{final.completions}", final)):
            result = self._evaluate(self.held_out, sampling, progress)
            write_results(result, self.folder.path / "evaluations" / f"{moment}-{name}.jsonl")
            found[name] = dataclasses.asdict(result.avg_at_k)
        return found

    def evaluate_on_the_way(self, step: int, progress: Progress) -> dict[str, float]:
        """The held-out accuracy of this step, if it is due."""
        during = self.config.evaluation.during
        if during is None or step % during.every:
            return {}
        progress.phase("evaluating")
        few = dataclasses.replace(self.held_out, problems=self.held_out.problems[: during.num_problems])
        return accuracy_metrics(dataclasses.asdict(self._evaluate(few, during, progress).avg_at_k))

    def log(self, step: int, metrics: dict[str, float], progress: Progress) -> None:
        """Writes a step's metrics everywhere they go."""
        self.folder.log(step, metrics)
        for tracker in self.trackers:
            tracker.log(step, metrics)
        progress.step_done(step, metrics)
        self.last_state = (step, self._state(step))

    def save(self, step: int) -> None:
        """Writes the checkpoint of this step."""
        assert self.last_state is not None
        tensors = self.trainer.optimizer.tensors()
        keep = self.config.run.keep_checkpoints
        save_checkpoint(self.folder.path / "checkpoints", step, tensors, self.last_state[1], keep)

    @contextmanager
    def saved_on_interrupt(self, progress: Progress) -> Iterator[None]:
        """On Ctrl-C, writes a checkpoint of the last finished step unless there is one."""
        try:
            yield
        except KeyboardInterrupt:
            checkpoints = self.folder.path / "checkpoints"
            if self.last_state is not None and not (checkpoints / f"step-{self.last_state[0]:06d}").exists():
                progress.note(f"Writing a checkpoint of step {self.last_state[0]}; Ctrl-C again stops at once.")
                self.save(self.last_state[0])
            raise

    def resume(self) -> int:
        """Goes back to the newest checkpoint and returns its step; 0 if there is none yet."""
        checkpoints = list_checkpoints(self.folder.path / "checkpoints")
        step = 0
        if checkpoints:
            state = read_state(checkpoints[-1])
            _require_same_config(state["config"], self.config.resolved(), checkpoints[-1])
            load_tensors(checkpoints[-1], self.trainer.optimizer.tensors())
            self.trainer.optimizer.sync_model()
            self.trainer.optimizer.num_steps_done = state["num_optimizer_steps"]
            self.collector.state.position = state["position"]
            self.collector.state.surplus = [group_from_json(group) for group in state["surplus"]]
            self.before, step = state["before"], int(state["step"])
            self.train_seconds, self.seconds_before = state["train_seconds"], state["seconds"]
            self.engine.version = step
            set_random_state(state["random"])
            self.last_state = (step, state)
        self.folder.truncate_after(step if checkpoints else -1)
        return step

    def _close_trackers(self) -> None:
        for tracker in self.trackers:
            tracker.close()

    def _state(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "config": self.config.resolved(),
            "num_optimizer_steps": self.trainer.optimizer.num_steps_done,
            "position": self.collector.state.position,
            "surplus": [dataclasses.asdict(group) for group in self.collector.state.surplus],
            "before": self.before,
            "train_seconds": self.train_seconds,
            "seconds": self.folder.seconds,
            "random": random_state(),
        }

    def _evaluate(self, task: Task, sampling: EvaluationSampling, progress: Progress) -> EvaluationResult:
        codec = self.policy.codec
        params = sampling.params(codec.stop_token_ids)
        seed = call_seed(self.config.run.seed, 0, -3)
        return evaluate(
            self.engine, task, codec.encode, codec.decode, params, sampling.completions, seed, progress.advance
        )


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


def accuracy_metrics(estimate: dict[str, Any]) -> dict[str, float]:
    """An accuracy with its interval, as a step's metrics."""
    names = {"value": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
    return {f"evaluation/{name}": float(estimate[key]) for key, name in names.items()}


def answer_records(step: int, rollout: Rollout) -> Iterator[dict[str, Any]]:
    """Every answer sampled in a step, as the run folder keeps it."""
    trained = {id(group) for group in rollout.groups}
    carried = [group for group in rollout.groups if all(group is not other for other in rollout.sampled)]
    for group in carried + rollout.sampled:
        for completion, text, verdict in zip(group.completions, group.texts, group.verdicts, strict=True):
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
                "trained": id(group) in trained,
            }


def group_from_json(data: dict[str, Any]) -> Group:
    """A group as `dataclasses.asdict` and JSON left it."""
    completions = (
        Completion(**one | {"token_ids": tuple(one["token_ids"]), "logprobs": tuple(one["logprobs"])})
        for one in data["completions"]
    )
    verdicts = (Verdict(**one) for one in data["verdicts"])
    problem, prompt_ids = Problem(**data["problem"]), tuple(data["prompt_ids"])
    return Group(problem, prompt_ids, tuple(completions), tuple(data["texts"]), tuple(verdicts))


def _open_folder(config: Config, resume: bool, force: bool) -> RunFolder:
    path = config.run.folder
    assert path is not None
    if resume and path.exists() and any(path.iterdir()):
        folder = RunFolder.open(path)
        _require_same_config(folder.read_config(), config.resolved(), path)
        return folder
    return RunFolder.create(path, config.resolved(), force=force)


def _require_same_config(before: dict[str, Any], now: dict[str, Any], place: Path) -> None:
    old, new = dict(_flat(before)), dict(_flat(now))
    for field in sorted((old.keys() | new.keys()) - FREE_TO_CHANGE):
        if old.get(field) != new.get(field):
            raise CheckpointError(
                f"{place} is of another config: {field} was {old.get(field)!r} there and is {new.get(field)!r} now; "
                "set it back, or choose another run.folder."
            )


def _flat(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _loaded(options: Any, config: Config, stack: ExitStack) -> Task:
    task = load_task(options, config.data_dir)
    stack.callback(task.verifier.close)
    return task
