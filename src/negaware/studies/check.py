"""Checks a study before its first run: whether every run can begin, and which runs are finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from negaware.config import Config, ConfigError, parse_config
from negaware.libraries import require_installed
from negaware.models.load import load_codec, pick_device
from negaware.models.lora import require_peft
from negaware.rollout.vllm import import_vllm
from negaware.runs.folder import RunFolder
from negaware.runs.trackers import require_trackers
from negaware.studies.canvas import MATPLOTLIB
from negaware.studies.folder import Stored, StudyFolder
from negaware.studies.matrix import Job, change, depends_on, jobs_of
from negaware.studies.options import StudyError, StudyOptions
from negaware.studies.user_files import MODEL
from negaware.tasks.load import load_task

NEEDED = (MATPLOTLIB, "scipy>=1.14")  # for figures and intervals


@dataclass(frozen=True, slots=True)
class Checked:
    """The runs of a study in their order, the names of the finished runs, and the GPUs that torch sees."""

    jobs: list[Job]
    done: set[str]
    num_gpus: int  # 0 if no run uses one

    @property
    def waiting(self) -> list[Job]:
        """The runs that aren't finished."""
        return [job for job in self.jobs if job.name not in self.done]


def check(study: StudyOptions, base: Path, path: Path) -> Checked:
    """The study's runs. ValueError if a run can't begin, has changed since it began, or can't be compared with the
    others."""
    for library in NEEDED:
        require_installed(library, "a study")
    folder, code_folders = StudyFolder(path), (base.parent, Path())
    jobs = jobs_of(study, base, path)
    stored = {job.name: folder.read_stored(job.name) for job in jobs}
    jobs = _with_their_models(jobs, stored)
    for job in jobs:
        _require_unchanged(job, stored[job.name], folder, code_folders)
    _require_one_model_a_seed(jobs)
    waiting = [job for job in jobs if stored[job.name] is None]
    configs = {job.name: parse_config(dict(job.config), folders=code_folders) for job in waiting}
    num_gpus = _num_gpus(configs)
    problems = _held_out_problems(configs, code_folders)
    for name, one in stored.items():
        if one:
            problems[name] = {id: one.result.questions[id] for id in next(iter(one.result.after.values()), {})}
    _require_same_evaluation(jobs, problems)
    for job in waiting:
        run_path = path / "runs" / job.name
        if not (run_path / "config.yaml").exists():
            RunFolder.require_free(run_path)
    for job in jobs:
        if (one := stored[job.name]) and any(job.beginning == other.beginning for other in waiting):
            folder.keep_beginning(job, one)
    return Checked(jobs, {name for name, one in stored.items() if one}, num_gpus)


def _with_their_models(jobs: Sequence[Job], stored: Mapping[str, Stored | None]) -> list[Job]:
    """The runs. Where a seed is finished in all variants, its runs keep the model hash that they were trained from.

    Variants are compared within a seed, so between seeds a warm start may be made again, on another machine.
    """
    unfinished = {job.seed for job in jobs if not stored[job.name]}
    return [
        replace(job, user_files=dict(job.user_files) | {MODEL: one.user_files[MODEL]})
        if (one := stored[job.name]) and job.seed not in unfinished and MODEL in one.user_files
        else job
        for job in jobs
    ]


def _require_unchanged(job: Job, stored: Stored | None, folder: StudyFolder, code_folders: Sequence[Path]) -> None:
    """StudyError if the run was finished, or begun, with another config."""
    place = folder.path / "runs" / job.name
    if stored:
        before = depends_on(_with_defaults(stored.config, code_folders), stored.user_files)
        made, remedy = "its result was made", f"delete {folder.result_path(job.name)}"
        if place.exists():
            remedy += f" and {place}"
    elif (place / "config.yaml").exists():
        run = RunFolder.open(place)
        before = depends_on(_with_defaults(run.read_config(), code_folders), folder.read_begun(job))
        made, remedy = "its run began", f"delete {run.path}"
    else:
        return
    if difference := change(before, depends_on(job.config, job.user_files)):
        raise StudyError(
            f"variant {job.variant} is not what it was when {made} with seed {job.seed}: {difference}; set it back, "
            f"give the variant a new name, or {remedy} to have it done again."
        )


def _require_one_model_a_seed(jobs: Sequence[Job]) -> None:
    """StudyError if variants of a seed that name the same model's folder began with different weights."""
    began: dict[tuple[int, str], Job] = {}
    for job in jobs:
        if MODEL not in job.user_files:  # taken to be the same, as in `change`
            continue
        first = began.setdefault((job.seed, job.config["model"]["name"]), job)
        if job.user_files[MODEL] != first.user_files[MODEL]:
            raise StudyError(
                f"{first.name} and {job.name} can't be compared: what was in model.name differed when they began; "
                "delete the results of one of them, and its folder in runs, to have it done again."
            )


def _with_defaults(config: Mapping[str, Any], code_folders: Sequence[Path]) -> Mapping[str, Any]:
    """The config with the defaults of fields that didn't exist yet when it was written."""
    try:
        return parse_config(dict(config), folders=code_folders).resolved()
    except ConfigError:
        return config


def _require_same_evaluation(jobs: Sequence[Job], problems: Mapping[str, Mapping[str, str]]) -> None:
    """StudyError unless all runs have the same measures and the same `problems` (run name → problem id → question)."""
    first = jobs[0]
    for job in jobs[1:]:
        both = f"{first.name} and {job.name} can't be compared"
        ways = [one.config["evaluation"]["final"]["completions"] for one in (first, job)]
        if ways[0] != ways[1]:
            raise StudyError(
                f"{both}: evaluation.final.completions is {ways[0]} in the one and {ways[1]} in the other; give all "
                "variants the same."
            )
        expected, found = problems[first.name], problems[job.name]
        if expected != found:
            differ = [id for id in {**expected, **found} if expected.get(id) != found.get(id)]
            raise StudyError(
                f"{both}: their held-out problems differ ({len(expected)} and {len(found)}, {differ[0]!r} is not the "
                "same in both); give all variants the same evaluation.task."
            )


def _held_out_problems(configs: Mapping[str, Config], code_folders: Sequence[Path]) -> dict[str, dict[str, str]]:
    """Run name → its held-out problems, id → question. ValueError unless all models, tasks and packages are there."""
    for config in configs.values():
        require_trackers(config.run.trackers)
        if config.model.lora:
            require_peft()
    for model in dict.fromkeys(config.model.name for config in configs.values()):
        load_codec(model)
    if any(config.rollout.engine.name == "vllm" for config in configs.values()):
        import_vllm()
    loaded: dict[str, dict[str, str]] = {}
    for config in configs.values():
        for options in (config.task, config.evaluation.task):
            key = repr((options, config.data_dir))
            if key not in loaded:
                task = load_task(options, config.data_dir, code_folders)
                task.verifier.close()
                loaded[key] = {problem.id: problem.question for problem in task.problems}
    return {name: loaded[repr((config.evaluation.task, config.data_dir))] for name, config in configs.items()}


def _num_gpus(configs: Mapping[str, Config]) -> int:
    if "cuda" not in {pick_device(config.device) for config in configs.values()}:
        return 0
    import torch

    return torch.cuda.device_count()
