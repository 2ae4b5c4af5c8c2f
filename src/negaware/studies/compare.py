"""`negaware compare`: a study without a file; its variants are a config with different values of some fields."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from negaware.config import ConfigError, load_config, parse_overrides, plain_value
from negaware.objective_options import OPTIONS, user_loss_options
from negaware.studies.folder import read_results
from negaware.studies.options import MAX_NAME, NAME, checked_study
from negaware.studies.results import StudyResults
from negaware.studies.study import run_study

Fields = Mapping[str, Any]


def compare_command(options: Namespace) -> int:
    """Runs `negaware compare` and returns its exit code. ValueError before the first run."""
    vary = _varied(options.objectives, options.vary)
    return _compare(options.config, vary, options.seeds, options.overrides, options.jobs, options.dry_run)[1]


def compare(
    config: str | Path,
    vary: Mapping[str, Sequence[Any]],
    *,
    seeds: Sequence[int] = (0,),
    overrides: Sequence[str] = (),
    jobs: int = 1,
) -> StudyResults:
    """Runs a config with all combinations of some fields' values, each with each seed, and returns the results.

        compare("configs/demo.yaml", {"objective": ["nft", "rft"]}, seeds=[0, 1, 2])

    `overrides` are fields for all runs, as on the command line: `["--run.steps", "20"]`. The same call again goes on
    with the unfinished runs. ValueError before the first run if a run can't begin, and after the last if runs failed.
    """
    for field, values in vary.items():
        if not _are_different(values):
            raise ValueError(f"vary[{field!r}] is {list(values)}; give one or more different values.")
    if not vary:
        raise ValueError('compare needs fields to vary, such as {"objective": ["nft", "rft"]}.')
    folder, exit_code = _compare(Path(config), vary, list(seeds), overrides, jobs, dry_run=False)
    if exit_code:
        raise ValueError(f"Some runs of {folder} failed; their logs there say why. The same call goes on with them.")
    return read_results(folder)


def _compare(
    path: Path, vary: Mapping[str, Sequence[Any]], seeds: Any, overrides: Sequence[str], jobs: int, dry_run: bool
) -> tuple[Path, int]:
    """The study's folder and its exit code."""
    parent = Path("runs") / f"{path.stem}-compare"  # `train` with the same config writes to runs/<stem>
    base = load_config(path, overrides, default_folder=parent)
    folder = base.run.folder
    assert folder is not None
    given = parse_overrides(overrides)
    _require_no_conflict([field for field, _ in given], vary, base.objective.entry.name)
    variants, notes = _variants(vary, base.objective.entry.name, (path.parent, Path()))
    study = {
        "base": os.path.relpath(path, folder),
        "folder": ".",
        "overrides": {".".join(field): value for field, value in given if field != ["run", "folder"]},
        "variants": variants,
        "seeds": seeds,
    }
    checked = checked_study(study)
    for note in notes:
        print(note)
    text = yaml.safe_dump(study, sort_keys=False, allow_unicode=True)
    return folder, run_study(checked, text, path, folder, jobs, dry_run)


def _varied(objectives: str | None, vary: Sequence[str]) -> dict[str, list[Any]]:
    """Field → values. Outer fields come first: which options there are depends on the objective."""
    found: dict[str, list[Any]] = {}
    if objectives is not None:
        found["objective"] = _values(objectives, "--objectives", "nft,rft")
    for text in vary:
        field, assigned, values = text.partition("=")
        if not assigned or not field:
            raise ValueError(f"--vary is {text!r}; write a field and its values, such as objective.epsilon=1,0.3,0.1.")
        if field in found:
            raise ValueError(f"--vary {field} is given twice, or beside --objectives; give it once.")
        found[field] = _values(values, f"--vary {field}", "1,0.3")
    if not found:
        raise ValueError("compare needs --objectives or --vary, such as --objectives nft,rft.")
    return dict(sorted(found.items(), key=lambda one: one[0].count(".")))


def _values(text: str, option: str, example: str) -> list[Any]:
    try:
        values = [plain_value(name.strip()) for name in text.split(",") if name.strip()]
    except ValueError as error:
        raise ValueError(f"{option} is {text!r}, which can't be read; write a study's file instead.") from error
    if not _are_different(values):
        raise ValueError(f"{option} is {text!r}; give different values with commas between, such as {example}.")
    return values


def _are_different(values: Sequence[Any]) -> bool:
    """Whether there are values, and no two are equal, as 1e-5 and 0.00001 are."""
    return bool(values) and not any(value in values[:place] for place, value in enumerate(values))


def _require_no_conflict(given: Sequence[list[str]], vary: Mapping[str, Sequence[Any]], base_objective: str) -> None:
    """ValueError for an override that no run would have."""
    for field in given:
        name = ".".join(field)
        if field == ["run", "seed"]:
            raise ValueError("--run.seed would be lost: compare takes the seeds from --seeds.")
        objectives = vary.get("objective", [base_objective])
        is_lost = name == "objective" or (field[0] == "objective" and base_objective not in objectives)
        if "objective" in vary and is_lost:
            raise ValueError(
                f"--{name} would be lost: compare takes the objectives from --objectives or --vary, "
                f"{', '.join(map(str, objectives))}; the config's objective, if it is among them, keeps its options."
            )
        if name in vary:
            raise ValueError(f"--{name} would be lost: --vary {name} sets it in each run.")


def _variants(
    vary: Mapping[str, Sequence[Any]], base_objective: str, folders: Sequence[Path]
) -> tuple[dict[str, Fields], list[str]]:
    """Name → the fields of each combination; and notes for the user."""
    variants: dict[str, Fields] = {}
    notes: dict[str, None] = {}
    for values in product(*vary.values()):
        fields = dict(zip(vary, values, strict=True))
        objective = str(fields.get("objective", base_objective))
        if objective == base_objective:  # the variant keeps the options that the config sets
            fields.pop("objective", None)
        for field in [*fields]:
            parent, _, option = field.partition(".")
            if parent == "objective" and option and objective != base_objective:
                if _has(objective, option, folders):
                    continue
                notes[f"{objective} has no {option}: it has one variant for all values of {option}."] = None
                del fields[field]
        shown = [objective.replace(":", ".")] if "objective" in vary else []
        shown += [f"{field.rpartition('.')[2]}={value}" for field, value in fields.items() if field != "objective"]
        name = "-".join(shown)
        if not NAME.fullmatch(name) or len(name) > MAX_NAME:
            raise ValueError(
                f"--vary makes a variant called {name}, which can't name a file; write a study's file and choose "
                "the names."
            )
        if name in variants and variants[name] != fields:
            raise ValueError(f"--vary makes two variants called {name}; write a study's file and choose the names.")
        variants[name] = fields
    return variants, [*notes]


def _has(objective: str, option: str, folders: Sequence[Path]) -> bool:
    """Whether an objective has an option. True for an unknown objective, which the config refuses later."""
    try:
        model = user_loss_options(objective, folders) if ":" in objective else OPTIONS[objective]
    except (ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        return True
    return option in model.model_fields
