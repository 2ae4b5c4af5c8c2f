"""The runs of a study: variants × seeds, each with its whole config, and what a finished one's config was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negaware.config import ConfigError, parse_config, read_config, set_field
from negaware.loop.resume import FREE_TO_CHANGE
from negaware.runs.report_data import flatten
from negaware.studies.options import StudyError, StudyOptions, assignments
from negaware.studies.own_files import CODE, TRAINING, OwnFiles
from negaware.studies.results import run_name


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a study, to be done or done."""

    variant: str
    seed: int
    config: Mapping[str, Any]
    """Resolved, as plain data."""
    own_files: Mapping[str, str]
    """By field, a hash of what is in the user's own files: loss, judges, data and model."""

    @property
    def name(self) -> str:
        """Of its files."""
        return run_name(self.variant, self.seed)

    @property
    def steps(self) -> int:
        """Its length."""
        return int(self.config["run"]["steps"])

    @property
    def depends_on(self) -> dict[str, Any]:
        """All that its result depends on, by dotted names."""
        return depends_on(self.config, self.own_files)

    @property
    def config_hash(self) -> str:
        """Of all that its result depends on."""
        return _hash(self.depends_on)

    @property
    def beginning(self) -> str:
        """A name for the evaluation before training that this run has in common with others."""
        evaluation = deepcopy(dict(self.config["evaluation"]))
        if evaluation["during"]:
            del evaluation["during"]["every"]
        settings = {name: self.config[name] for name in ("model", "device")} | {"evaluation": evaluation}
        own_files = {field: mark for field, mark in self.own_files.items() if field not in TRAINING}
        settings |= {"engine": self.config["rollout"]["engine"]["name"], "own_files": own_files}
        return f"before-{_hash(settings | {'dtype': self.config['training']['compute_dtype']})[:12]}"


def jobs_of(study: StudyOptions, base: Path, folder: Path) -> list[Job]:
    """The study's runs, the seeds of a variant side by side, with run folders below `folder`. Raises ValueError.

    Seed by seed: what is stopped half way has some of every variant.
    """
    data, common = read_config(base), assignments(study.overrides, "overrides")
    own = (base.parent, Path())
    files = OwnFiles(own)
    jobs = []
    for seed in study.seeds:
        for variant, fields in study.variants.items():
            name = run_name(variant, seed)
            changed = deepcopy(data)
            try:
                for field, value in [*common, *assignments(fields, f"variants.{variant}")]:
                    set_field(changed, field, deepcopy(value))
                for field, value in (["run", "seed"], seed), (["run", "folder"], str(folder / "runs" / name)):
                    set_field(changed, field, value)
                config = parse_config(changed, folders=own)
                if config.evaluation.seed is None:
                    set_field(changed, ["evaluation", "seed"], 0)
                    config = parse_config(changed, folders=own)
            except ConfigError as error:
                raise StudyError(f"variant {variant}: {error}") from error
            for measure in study.margins:
                known = ("greedy_accuracy", f"avg_at_{config.evaluation.final.completions}")
                if measure not in known:
                    raise StudyError(
                        f"margins: variant {variant} isn't judged by {measure}, but by {' and '.join(known)}."
                    )
            jobs.append(Job(variant, seed, config.resolved(), files.of(config)))
    return jobs


def depends_on(config: Mapping[str, Any], own_files: Mapping[str, str]) -> dict[str, Any]:
    """All that a run's result depends on, by dotted names."""
    fields = {name: value for name, value in flatten(config).items() if name not in FREE_TO_CHANGE}
    return fields | {
        f"{'the file of' if field in CODE else 'what is in'} {field}": mark for field, mark in own_files.items()
    }


def change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first difference between what a run depended on and what it would depend on now, in words.

    A file whose hash one of them lacks, since it isn't here or the result is an old one, is taken to be the same.
    """
    for field in {**before, **now}:
        was, is_now = before.get(field), now.get(field)
        if was == is_now or (" " in field and None in (was, is_now)):
            continue
        return f"{field} has changed" if " " in field else f"{field} was {was!r} there and is {is_now!r} now"
    return None


def _hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
