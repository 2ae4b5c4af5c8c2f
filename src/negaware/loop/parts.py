"""What a run is made of: its tasks, its policy, what samples from it and what trains it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from negaware.config import Config
from negaware.loop.resume import fingerprint
from negaware.models.load import compute_dtype, load_policy, load_sharded_policy, pick_device
from negaware.models.lora import frozen_checksum
from negaware.models.parallel import named_weights
from negaware.ranks import Ranks
from negaware.rollout.ask import Asker
from negaware.rollout.collect import Collector, short_of_room
from negaware.rollout.engines import make_engine
from negaware.rollout.local import LocalEngine
from negaware.tasks.golds import GoldCheck
from negaware.tasks.load import load_task
from negaware.tasks.options import DatasetOptions
from negaware.training.step import LossSettings, Trainer

GOLDS_PATIENCE = 10.0
"""Seconds that a run's start waits for the check of its gold answers; then it goes on beside the first rollout."""


class Parts:
    """The parts of a run in `folder`, made from its config. `stack` closes what must be closed.

    `note` is told a sentence for each thing that the user should know; a judge of one's own is looked for in `judges`.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        note: Callable[[str], object],
        stack: ExitStack,
        ranks: Ranks,
        judges: Path,
    ) -> None:
        training, rollout = config.training, config.rollout
        device = ranks.device(pick_device(config.device))
        self.dtype = compute_dtype(training.compute_dtype, device)
        if ranks.size == 1 and training.offload == "cpu":
            note("training.offload is cpu, but one process has no shards to keep there: weights stay where they are")
        sources = config.task, config.evaluation.task
        self.task, self.held_out = tasks = [load_task(each, config.data_dir, (judges, Path())) for each in sources]
        for task in tasks:
            stack.callback(task.verifier.close)
        unaudited = [
            (each.path, task)
            for each, task in zip(sources, tasks, strict=True)
            if ranks.is_first and isinstance(each, DatasetOptions) and not each.verifier
        ]
        self.golds = GoldCheck(unaudited)
        stack.callback(self.golds.stop)
        name, lora = config.model.name, config.model.lora
        if ranks.size == 1:
            self.policy = load_policy(name, self.dtype, device, lora, trained=True)
        else:
            self.policy = load_sharded_policy(name, ranks, device, self.dtype, training.offload == "cpu", lora)
        self.engine = make_engine(rollout, self.policy, name, self.dtype, device, folder, ranks, note)
        stack.callback(self.engine.withdraw)  # nothing goes on being sampled for a run that has ended
        codec = self.policy.codec
        self.asker = Asker(self.engine, codec.encode, codec.decode, ranks, rollout.ranks_per_engine)
        self.collector = Collector(
            self.asker,
            self.task,
            rollout.params(codec.stop_token_ids, self.policy.max_tokens),
            rollout,
            config.run.seed,
            config.objective.teaching_rates if rollout.filter == "none" else (),
            config.run.steps,
        )
        held_out = [codec.encode(self.held_out.messages(problem)) for problem in self.held_out.problems]
        params = config.evaluation.final.params(codec.stop_token_ids, self.policy.max_tokens)
        for sentence in self.collector.left_out_or_short() + short_of_room(self.held_out.name, held_out, params):
            note(sentence)
        objective, settings, reduction = config.objective.entry, config.objective.options, config.objective.reduction
        loss = LossSettings(objective, settings, rollout.temperature, rollout.max_new_tokens, reduction)
        steps, questions = config.run.steps, rollout.questions
        self.trainer = Trainer(self.policy.network, loss, training, steps, ranks, questions)
        self.origin = {
            "the problems of task": fingerprint(self.task.problems),
            "the problems of evaluation.task": fingerprint(self.held_out.problems),
            "the weights under the adapters": str(sum(ranks.gather(frozen_checksum(self.policy.model))) % 2**64),
        }
        """What a checkpoint doesn't hold, though the run depends on it, each with its fingerprint."""
        self.golds.require(GOLDS_PATIENCE)

    def hand_over(self, version: int) -> None:
        """Gives the engine the weights that were trained, unless it samples with that very model."""
        has_them = isinstance(self.engine, LocalEngine) and self.engine.network is self.policy.network
        self.engine.load_weights(() if has_them else named_weights(self.policy.model, self.dtype), version)
