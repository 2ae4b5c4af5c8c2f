"""Before a study's first run: whether every run can begin, and which are done. It trains nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
from negaware.studies.own_files import MODEL
from negaware.tasks.load import load_task

NEEDED = (MATPLOTLIB, "scipy>=1.14")
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
    """The study's runs. ValueError where one can't begin, has changed since it began or was done, or can't be compared
    with the others."""
    for library in NEEDED:
        require_installed(library, "a study")
    folder, own = StudyFolder(path), (base.parent, Path())
    jobs = jobs_of(study, base, path)
    stored = {job.name: folder.read_stored(job.name) for job in jobs}
    jobs = _with_their_models(jobs, stored)
    for job in jobs:
        _require_unchanged(job, stored[job.name], folder, own)
    waiting = [job for job in jobs if stored[job.name] is None]
    configs = {job.name: parse_config(dict(job.config), folders=own) for job in waiting}
    num_gpus, problems = _require_parts(configs, own)
    problems |= {name: _problems(one) for name, one in stored.items() if one}
    _require_same_evaluation(jobs, problems)
    for job in waiting:
        place = path / "runs" / job.name
        if not (place / "config.yaml").exists():
            RunFolder.require_free(place)
    for job in jobs:
        if (one := stored[job.name]) and any(job.beginning == other.beginning for other in waiting):
            folder.keep_beginning(job, one)
    return Checked(jobs, {name for name, one in stored.items() if one}, num_gpus)


def _with_their_models(jobs: Sequence[Job], stored: Mapping[str, Stored | None]) -> list[Job]:
    """The runs; those of a seed that is done in all variants, with the model's content that they began with.

    Variants are compared within a seed, so a warm start may be made again, on another machine, between seeds.
    """
    unfinished = {job.seed for job in jobs if not stored[job.name]}
    return [
        replace(job, own_files=dict(job.own_files) | {MODEL: one.own_files[MODEL]})
        if (one := stored[job.name]) and job.seed not in unfinished and MODEL in one.own_files
        else job
        for job in jobs
    ]


def _require_unchanged(job: Job, stored: Stored | None, folder: StudyFolder, own: Sequence[Path]) -> None:
    """StudyError if the run was done, or begun, with another config."""
    now, place = job.depends_on, folder.path / "runs" / job.name
    if stored:
        before = depends_on(_complete(stored.config, own), stored.own_files)
        made, remedy = "its result was made", f"delete {folder.result_path(job.name)}"
        if place.exists():
            remedy += f" and {place}"
    elif (place / "config.yaml").exists():
        run = RunFolder.open(place)
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


def _problems(stored: Stored) -> dict[str, str]:
    result = stored.result
    return {problem: result.questions[problem] for problem in next(iter(result.after.values()), {})}


def _require_same_evaluation(jobs: Sequence[Job], problems: Mapping[str, Mapping[str, str]]) -> None:
    """StudyError unless all runs are judged by the same measures on the same problems: `problems` are theirs, by name,
    ids with questions."""
    first = jobs[0]
    for job in jobs[1:]:
        both = f"{first.name} and {job.name} can't be compared"
        ways = [one.config["evaluation"]["final"]["completions"] for one in (first, job)]
        if ways[0] != ways[1]:
            raise StudyError(
                f"{both}: evaluation.final.completions is {ways[0]} in the one and {ways[1]} in the other; give all "
                "variants the same."
            )
        ours, others = problems[first.name], problems[job.name]
        if ours != others:
            differ = [one for one in {**ours, **others} if ours.get(one) != others.get(one)]
            raise StudyError(
                f"{both}: their held-out problems differ ({len(ours)} and {len(others)}, {differ[0]!r} is not the same "
                "in both); give all variants the same evaluation.task."
            )


def _require_parts(configs: Mapping[str, Config], own: tuple[Path, ...]) -> tuple[int, dict[str, dict[str, str]]]:
    """How many GPUs there are; and by run its held-out problems, ids with questions.

    ValueError unless models, problems and packages are there.
    """
    seen: set[str] = set()

    def is_new(what: object) -> bool:
        text = repr(what)
        return not (text in seen or seen.add(text))  # type: ignore[func-returns-value]

    devices, held_out = set(), {}
    loaded: dict[str, dict[str, str]] = {}
    for name, config in configs.items():
        devices.add(pick_device(config.device))
        require_trackers(config.run.trackers)
        if config.model.lora:
            require_peft()
        if is_new(config.model.name):
            load_codec(config.model.name)
        if config.rollout.engine.name == "vllm" and is_new("vllm"):
            import_vllm()
        for task in (config.task, config.evaluation.task):
            place = repr((task, config.data_dir))
            if place not in loaded:
                found = load_task(task, config.data_dir, own)
                found.verifier.close()
                loaded[place] = {problem.id: problem.question for problem in found.problems}
        held_out[name] = loaded[repr((config.evaluation.task, config.data_dir))]
    if "cuda" not in devices:
        return 0, held_out
    import torch

    return torch.cuda.device_count(), held_out
