"""Where a run stands: what is written of each finished step, and what of it a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from negaware.config import Config
from negaware.evaluation.outcome import Counts
from negaware.loop.parts import Parts
from negaware.ranks import Ranks
from negaware.rollout.collect import NothingToLearnError
from negaware.rollout.records import begun_from_json, begun_to_json, groups_from_json, groups_to_json
from negaware.runs.folder import RunFolder
from negaware.runs.health import collapse, vital_signs, what_became_of_it
from negaware.runs.progress import Progress
from negaware.runs.trackers import Tracker
from negaware.training.checkpoint import load_tensors, random_state, save_checkpoint, set_random_state


class RunState:
    """The steps that a run has finished. Checkpoints are of the last one."""

    def __init__(self, config: Config, parts: Parts, folder: RunFolder, progress: Progress, ranks: Ranks) -> None:
        self.config, self.parts, self.folder, self.progress, self.ranks = config, parts, folder, progress, ranks
        self.trackers: Sequence[Tracker] = ()
        self.before: dict[str, Counts] | None = None
        """The evaluation before training, once there is one."""
        self.train_seconds = 0.0
        self.history: list[dict[str, Any]] = []
        """Of each finished step, what `runs/health.py` looks at."""
        self.last_state: dict[str, Any] | None = None
        """After the last finished step; with the optimizer's tensors it makes a checkpoint."""
        self.saved_step: int | None = None

    def finish_step(self, step: int, metrics: dict[str, float], answers: Iterable[dict[str, Any]] = ()) -> None:
        """Writes a finished step's metrics everywhere they go, its answers first."""
        if self.ranks.is_first:
            if step:
                self.folder.write_answers(step, answers)
            self.folder.log(step, metrics)
        self.history.append(vital_signs({"step": step, **metrics}))
        collector = self.parts.collector.state
        self.last_state = {
            "step": step,
            "config": self.config.resolved(),
            "origin": self.parts.origin,
            "metrics": self.folder.logged,
            "num_optimizer_steps": self.parts.trainer.optimizer.num_steps_done,
            "position": collector.position,
            "surplus": collector.surplus,  # the ranks bring its tokens together when it is written
            "num_barren": collector.num_barren,
            "begun": [each.copied() for each in self.parts.collector.ahead.begun],
            "before": self.before,
            "train_seconds": self.train_seconds,
            "random": random_state(),
        }
        self.progress.step_done(step, metrics)
        if sentence := collapse(self.history, self.config.training.learning_rate):
            self.progress.note(sentence)
        for tracker in self.trackers:  # last: one that fails ends the run, and a single process can still save its step
            tracker.log(step, metrics)

    def save(self, announce: bool = False, at_the_end: bool = False) -> None:
        """Writes a checkpoint of the last finished step, unless that was done or a later step has begun to train.

        At the end of several ranks it is left out if not all of them have come here, from the same step.
        """
        state, optimizer = self.last_state, self.parts.trainer.optimizer
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
        written = state | {
            "surplus": groups_to_json(state["surplus"], self.ranks),
            "begun": begun_to_json(state["begun"], self.ranks),
            "positions": self.ranks.gather(state["position"]),
        }
        place, keep = self.folder.path / "checkpoints", self.config.run.keep_checkpoints
        save_checkpoint(place, state["step"], optimizer.tensors(), written, keep, self.ranks)

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to the checkpoint of this state."""
        optimizer, collector = self.parts.trainer.optimizer, self.parts.collector.state
        self.saved_step = state["step"]
        load_tensors(self.folder.path / "checkpoints", state["step"], optimizer.tensors(), self.ranks)
        optimizer.sync_model()
        optimizer.num_steps_done, optimizer.rollouts_done = state["num_optimizer_steps"], state["step"]
        self.parts.collector.go_to(state.get("positions", [state["position"]]))
        collector.surplus = groups_from_json(state["surplus"], self.ranks)
        collector.num_barren = state.get("num_barren", 0)
        ahead = self.parts.collector.ahead
        ahead.begun = begun_from_json(state.get("begun", ()), ahead.prompts, ahead.params, self.ranks)
        self.before, self.train_seconds = state["before"], state["train_seconds"]
        self.history = [vital_signs(line) for line in state.get("metrics", ())]
        set_random_state(state["random"])

    def explained(self, error: NothingToLearnError) -> NothingToLearnError:
        """The error, with what the run's own history says of it."""
        return error.because(what_became_of_it(self.history, error.pass_rate, self.config.training.learning_rate))
