"""The runs of a study, variants × seeds: the config of each run, and whether that config has changed since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negaware.config import ConfigError, parse_config, read_config, set_field
from negaware.loop.resume import may_change
from negaware.runs.report_data import flatten
from negaware.studies.options import StudyError, StudyOptions, assignments
from negaware.studies.results import run_name
from negaware.studies.user_files import CODE, TRAINING, UserFiles


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a study, finished or not."""

    variant: str
    seed: int
    config: Mapping[str, Any]
    """The resolved config, as plain data."""
    user_files: Mapping[str, str]
    """Field → hash of the user's files that the field names: loss, judges, data, model."""

    @property
    def name(self) -> str:
        """The name of the run's folder and files."""
        return run_name(self.variant, self.seed)

    @property
    def steps(self) -> int:
        """The number of training steps."""
        return int(self.config["run"]["steps"])

    @property
    def config_hash(self) -> str:
        """A hash of everything that the run's result depends on."""
        return _hash(depends_on(self.config, self.user_files))

    @property
    def beginning(self) -> str:
        """The name of the evaluation before training: equal for all runs that can use the same one."""
        evaluation = deepcopy(dict(self.config["evaluation"]))
        if evaluation["during"]:
            del evaluation["during"]["every"]
        settings = {name: self.config[name] for name in ("model", "device")} | {"evaluation": evaluation}
        user_files = {field: file_hash for field, file_hash in self.user_files.items() if field not in TRAINING}
        settings |= {"engine": self.config["rollout"]["engine"]["name"], "own_files": user_files}
        return f"before-{_hash(settings | {'dtype': self.config['training']['compute_dtype']})[:12]}"


def jobs_of(study: StudyOptions, base: Path, folder: Path) -> list[Job]:
    """The study's runs; their run folders are below `folder`. Raises ValueError.

    The runs are ordered by seed, so that a study that is stopped half way has runs of every variant.
    """
    data, common = read_config(base), assignments(study.overrides, "overrides")
    code_folders = (base.parent, Path())
    files = UserFiles(code_folders)
    jobs = []
    for seed in study.seeds:
        for variant, fields in study.variants.items():
            name = run_name(variant, seed)
            changed = deepcopy(data)
            try:
                run_fields = [(["run", "seed"], seed), (["run", "folder"], str(folder / "runs" / name))]
                for field, value in [*common, *assignments(fields, f"variants.{variant}"), *run_fields]:
                    set_field(changed, field, deepcopy(value))
                config = parse_config(changed, folders=code_folders)
                if config.evaluation.seed is None:
                    set_field(changed, ["evaluation", "seed"], 0)
                    config = parse_config(changed, folders=code_folders)
            except ConfigError as error:
                raise StudyError(f"variant {variant}: {error}") from error
            for measure in study.margins:
                known = ("greedy_accuracy", f"avg_at_{config.evaluation.final.completions}")
                if measure not in known:
                    raise StudyError(
                        f"margins: variant {variant} isn't measured by {measure}, but by {' and '.join(known)}."
                    )
            jobs.append(Job(variant, seed, config.resolved(), files.hashes(config)))
    return jobs


def depends_on(config: Mapping[str, Any], user_files: Mapping[str, str]) -> dict[str, Any]:
    """Everything that a run's result depends on, by dotted names."""
    flat = flatten(config)
    fields = {name: value for name, value in flat.items() if not may_change(name, flat)}
    return fields | {
        f"{'the file of' if field in CODE else 'what is in'} {field}": file_hash
        for field, file_hash in user_files.items()
    }


def change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """A sentence for the first difference between two results of `depends_on`; None if they are equal.

    A file without a hash on one side (the file isn't here, or the result is old) counts as unchanged.
    """
    for field in {**before, **now}:
        was, is_now = before.get(field), now.get(field)
        if was == is_now or (" " in field and None in (was, is_now)):
            continue
        return f"{field} has changed" if " " in field else f"{field} was {was!r} there and is {is_now!r} now"
    return None


def _hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
