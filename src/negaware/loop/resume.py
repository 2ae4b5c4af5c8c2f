"""How a run begins or goes on: its folder, its newest checkpoint, and what may differ between the two configs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from negaware.config import Config, ConfigError, parse_config
from negaware.models.files import is_whole
from negaware.ranks import Ranks
from negaware.runs.folder import RunFolder
from negaware.runs.report_data import flatten
from negaware.training.checkpoint import CheckpointError, newest_checkpoint, read_state
from negaware.types import Problem

FREE_TO_CHANGE = {
    *("run.folder", "run.checkpoint_every", "run.keep_checkpoints", "run.trackers", "data_dir", "device"),
    *("rollout.max_sequences", "training.micro_batch_tokens", "training.activations", "training.offload"),
    *("model.lora.save", "task.limits.workers", "evaluation.task.limits.workers"),
    *(f"rollout.engine.{name}" for name in ("api_key_env", "cache_gib", "shared_folder", "tensor_parallel", "url")),
    "rollout.max_sampled_questions",  # never reached by a finished step that found enough
}
"""What a resumed run may set otherwise than its checkpoint: it changes nothing of what was learnt, rounding apart."""


def may_change(field: str, config: Mapping[str, Any]) -> bool:
    """Whether a run with this config, by dotted names, may go on with another value of the field.

    Where questions are asked ahead, `max_sequences` decides how many, and so which version of the policy draws what.
    """
    return field in FREE_TO_CHANGE and not (field == "rollout.max_sequences" and config.get("rollout.max_staleness"))


def open_run_folder(
    config: Config, resume: bool, force: bool, own: Sequence[Path] = (Path(),)
) -> tuple[RunFolder, bool, bool]:
    """The run's folder; whether the run is a new one (its folder may be made, but isn't yet); whether it is done.

    `own`: where a loss of one's own is looked for. ValueError for a file in the folder that couldn't be read later:
    better now than at the end of the training.
    """
    path = config.run.folder
    if path is None:
        raise ValueError("The config names no run.folder, where the run's files would go; set it.")
    if resume and not RunFolder.is_empty(path):
        folder = RunFolder.open(path)
        _require_same_config(folder.read_config(), config.resolved(), path, own)
        folder.read_environment()
        return folder, False, folder.read_summary() is not None and is_whole(path / "model")
    RunFolder.require_free(path, force=force)
    return RunFolder(path), True, False


def last_state(
    folder: RunFolder, config: Config, ranks: Ranks, own: Sequence[Path] = (Path(),)
) -> dict[str, Any] | None:
    """The state in the newest checkpoint, None if there is none. CheckpointError if what is there needs one."""
    path = ranks.from_first(lambda: newest_checkpoint(folder.path / "checkpoints"))
    if path is None:
        if ranks.from_first(lambda: folder.read_summary() is not None):
            raise CheckpointError(
                f"The run in {folder.path} is finished, but its model isn't whole, and there is no checkpoint to write "
                "it from; put one of them back, or begin anew with --force."
            )
        return None
    state = read_state(path, ranks)
    _require_same_config(state["config"], config.resolved(), path, own)
    return state


def fingerprint(problems: Sequence[Problem]) -> str:
    """A hash of the problems: their ids, questions and gold answers, in their order."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.id, problem.question, problem.answer]).encode())
    return digest.hexdigest()


def require_same_origin(before: Mapping[str, str], now: Mapping[str, str], place: Path) -> None:
    """CheckpointError if something that the run in `place` began with, by what it is, has another fingerprint now."""
    for what, mark in now.items():
        if before.get(what, mark) != mark:
            raise CheckpointError(
                f"{place} is of other data: {what} have changed since the run began; put them back as they were, or "
                "choose another run.folder."
            )


def begin_to_write(
    folder: RunFolder,
    config: Config,
    state: Mapping[str, Any] | None,
    how: dict[str, Any],
    *,
    is_new: bool,
    force: bool,
) -> list[str]:
    """Makes the folder of a new run, or takes an old one back to its checkpoint's state.

    `how` is what decides the rounding of this process's figures; a sentence for each that was otherwise at the run's
    beginning.
    """
    if is_new:
        RunFolder.create(folder.path, config.resolved(), {"computation": how}, force=force)
        return []
    folder.go_back(0 if state is None else int(state["step"]), [] if state is None else state.get("metrics"))
    folder.write_config(config.resolved())
    before = folder.read_environment().get("computation", {})
    return [
        f"{name} was {before[name]} when the run began and is {value} now: figures may differ by rounding"
        for name, value in how.items()
        if before.get(name, value) != value
    ]


def _require_same_config(before: dict[str, Any], now: dict[str, Any], place: Path, own: Sequence[Path]) -> None:
    try:  # parsed, so that what was written in short or before a field was there compares with its default
        old, new = flatten(parse_config(before, folders=own).resolved()), flatten(now)
    except ConfigError as error:
        raise CheckpointError(f"{place} has a config that can't be used: {error}") from error
    for field in old | new:
        if not may_change(field, new) and old.get(field) != new.get(field):
            raise CheckpointError(
                f"{place} is of another config: {field} was {old.get(field)!r} there and is {new.get(field)!r} now; "
                "set it back, or choose another run.folder."
            )
