"""How a run begins or goes on: its folder, its newest checkpoint, and what may differ between the two configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from negaware.config import Config, ConfigError, parse_config
from negaware.ranks import Ranks
from negaware.runs.folder import RunFolder
from negaware.runs.report_data import flatten
from negaware.training.checkpoint import CheckpointError, newest_checkpoint, read_state

FREE_TO_CHANGE = {
    *("run.folder", "run.checkpoint_every", "run.keep_checkpoints", "run.trackers", "data_dir", "device"),
    *("rollout.max_sequences", "training.micro_batch_tokens", "training.activations", "training.offload"),
    "model.lora.save",
    *(f"rollout.engine.{name}" for name in ("api_key_env", "cache_gib", "shared_folder", "tensor_parallel", "url")),
    "rollout.max_sampled_questions",  # never reached by a finished step that found enough
}
"""What a resumed run may set otherwise than its checkpoint: it changes nothing of what was learnt, rounding apart."""


def open_run_folder(config: Config, resume: bool, force: bool) -> tuple[RunFolder, bool, bool]:
    """The run's folder; whether the run is a new one (its folder may be made, but isn't yet); whether it is done."""
    path = config.run.folder
    assert path is not None
    if resume and path.is_dir() and any(path.iterdir()):
        folder = RunFolder.open(path)
        _require_same_config(folder.read_config(), config.resolved(), path)
        return folder, False, folder.read_summary() is not None and (path / "model").exists()
    RunFolder.require_free(path, force=force)
    return RunFolder(path), True, False


def last_state(folder: RunFolder, config: Config, ranks: Ranks) -> dict[str, Any] | None:
    """The state in the newest checkpoint, None if there is none."""
    path = ranks.of_first(lambda: newest_checkpoint(folder.path / "checkpoints"))
    if path is None:
        return None
    state = read_state(path, ranks)
    _require_same_config(state["config"], config.resolved(), path)
    return state


def _require_same_config(before: dict[str, Any], now: dict[str, Any], place: Path) -> None:
    try:  # parsed, so that what was written in short or before a field was there compares with its default
        old, new = flatten(parse_config(before).resolved()), flatten(now)
    except ConfigError as error:
        raise CheckpointError(f"{place} has a config that can't be used: {error}") from error
    for field in old | new:
        if field not in FREE_TO_CHANGE and old.get(field) != new.get(field):
            raise CheckpointError(
                f"{place} is of another config: {field} was {old.get(field)!r} there and is {new.get(field)!r} now; "
                "set it back, or choose another run.folder."
            )
