"""Before a study's first run: whether every run can begin, and which are done. It trains nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from negaware.config import Config, ConfigError, parse_config
from negaware.libraries import require_installed
from negaware.models.load import load_codec, pick_device
from negaware.models.lora import require_peft
from negaware.rollout.vllm import import_vllm
from negaware.runs.folder import RunFolder
from negaware.runs.trackers import require_trackers
from negaware.studies.folder import Stored, StudyFolder
from negaware.studies.matrix import Job, change, depends_on, jobs_of
from negaware.studies.options import StudyError, StudyOptions
from negaware.tasks.load import load_task

NEEDED = ("matplotlib>=3.9", "scipy>=1.14")
"""What figures and intervals are made with."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a study comes to."""

    jobs: list[Job]
    """All runs, in the order in which they are done."""
    done: set[str]
    """The names of those that are."""
    num_gpus: int
    """Those that torch sees, unless no run uses one."""

    @property
    def waiting(self) -> list[Job]:
        """The runs that are to be done."""
        return [job for job in self.jobs if job.name not in self.done]


def check(study: StudyOptions, base: Path, path: Path) -> Checked:
    """The study's runs. ValueError where one can't begin, or has changed since it began or was done."""
    for library in NEEDED:
        require_installed(library, "a study")
    folder, own = StudyFolder(path), (base.parent, Path())
    jobs = jobs_of(study, base, path)
    stored = {job.name: folder.read_stored(job.name) for job in jobs}
    for job in jobs:
        _require_unchanged(job, stored[job.name], folder, own)
    waiting = [job for job in jobs if stored[job.name] is None]
    configs = {json.dumps(job.config): parse_config(dict(job.config), folders=own) for job in waiting}
    num_gpus = _require_parts([*configs.values()], own)
    for job in waiting:
        place = path / "runs" / job.name
        if not (place / "config.yaml").exists():
            RunFolder.require_free(place)
    for job in jobs:
        if (one := stored[job.name]) and any(job.beginning == other.beginning for other in waiting):
            folder.keep_beginning(job, one)
    return Checked(jobs, {name for name, one in stored.items() if one}, num_gpus)


def _require_unchanged(job: Job, stored: Stored | None, folder: StudyFolder, own: Sequence[Path]) -> None:
    """StudyError if the run was done, or begun, with another config."""
    now = job.depends_on
    if stored:
        before = depends_on(_complete(stored.config, own), stored.own_files)
        made, remedy = "its result was made", f"delete {folder.result_path(job.name)}"
    elif (folder.path / "runs" / job.name / "config.yaml").exists():
        run = RunFolder.open(folder.path / "runs" / job.name)
        before = depends_on(_complete(run.read_config(), own), job.own_files)
        made, remedy = "its run began", f"delete {run.path}"
    else:
        return
    if difference := change(before, now):
        raise StudyError(
            f"variant {job.variant} is not what it was when {made} with seed {job.seed}: {difference}; set it back, "
            f"give the variant a new name, or {remedy} to have it done again."
        )


def _complete(config: object, own: Sequence[Path]) -> dict[str, object]:
    """With the defaults of fields that came later."""
    assert isinstance(config, dict)
    try:
        return parse_config(config, folders=own).resolved()
    except ConfigError:
        return config


def _require_parts(configs: Sequence[Config], own: tuple[Path, ...]) -> int:
    """ValueError unless models, problems and packages are there; how many GPUs are."""
    seen: set[str] = set()

    def is_new(what: object) -> bool:
        text = repr(what)
        return not (text in seen or seen.add(text))  # type: ignore[func-returns-value]

    devices = set()
    for config in configs:
        devices.add(pick_device(config.device))
        require_trackers(config.run.trackers)
        if config.model.lora:
            require_peft()
        if is_new(config.model.name):
            load_codec(config.model.name)
        if config.rollout.engine.name == "vllm" and is_new("vllm"):
            import_vllm()
        for task in (config.task, config.evaluation.task):
            if is_new((task, config.data_dir)):
                load_task(task, config.data_dir, own).verifier.close()
    if "cuda" not in devices:
        return 0
    import torch

    return torch.cuda.device_count()
