"""`negaware compare`: the same config under several objectives and seeds, one run after another, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from negaware.config import Config, load_config, parse_overrides
from negaware.ranks import joined_ranks
from negaware.runs.folder import RunFolder, replace_file
from negaware.runs.report import write_report
from negaware.runs.summary import compare_table
from negaware.train import train


def compare(config_path: Path, overrides: Sequence[str], objectives: str, seeds: str) -> None:
    """Runs what isn't finished yet, then writes `compare.md` and `report.html` beside the runs and prints the table.

    Every run's config is checked before the first one starts. Raises ValueError.
    """
    configs = _configs(config_path, overrides, _names(objectives, "--objectives"), _seeds(seeds))
    if configs[0].rollout.engine.name == "vllm":
        raise ValueError(
            "rollout.engine is vllm, of which a process can have one in its life, and compare makes one a run; take "
            "local or vllm_server, or start the runs one by one with negaware train."
        )
    folders: dict[str, list[RunFolder]] = {}
    with joined_ranks() as ranks:
        for number, config in enumerate(configs, start=1):
            if ranks.is_first:
                print(f"run {number} of {len(configs)}: {config.run.folder}", flush=True)
            run = train(config, resume=True, ranks=ranks, judges=config_path.parent)
            folders.setdefault(config.objective.entry.name, []).append(RunFolder.open(run))
    if not ranks.is_first:
        return
    parent = folders[configs[0].objective.entry.name][0].path.parent
    table = compare_table(folders)
    replace_file(parent / "compare.md", table.markdown())
    write_report([folder.path for runs in folders.values() for folder in runs], parent / "report.html")
    Console().print(table.rich())
    print(f"table   {parent / 'compare.md'}\nreport  {parent / 'report.html'}")


def _configs(path: Path, overrides: Sequence[str], objectives: list[str], seeds: list[int]) -> list[Config]:
    """One config an objective and seed, each with its folder inside the config's run folder."""
    parent = Path("runs") / f"{path.stem}-compare"  # `train` with the same config writes to runs/<stem>
    base = load_config(path, overrides, default_folder=parent)
    assert base.run.folder is not None
    for field, _ in parse_overrides(overrides):
        if field == ["run", "seed"]:
            raise ValueError("--run.seed would be lost: compare takes the seeds from --seeds.")
        if field == ["objective"] or (field[0] == "objective" and base.objective.entry.name not in objectives):
            raise ValueError(
                f"--{'.'.join(field)} would be lost: compare takes the objectives from --objectives, "
                f"{', '.join(objectives)}; the config's own, if it is among them, keeps its options."
            )
    configs = []
    for objective in objectives:
        # The config's own objective keeps its options; the others have their defaults.
        own = [] if objective == base.objective.entry.name else ["--objective", objective]
        for seed in seeds:
            place = base.run.folder / f"{objective.replace(':', '.')}-seed{seed}"
            folder = ["--run.folder", str(place), "--run.seed", str(seed)]
            configs.append(load_config(path, overrides, further=[*own, *folder]))
    return configs


def _names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{option} is {text!r}; give different names with commas between, such as nft,rft.")
    return names


def _seeds(text: str) -> list[int]:
    names = _names(text, "--seeds")
    if not all(name.isdecimal() for name in names):
        raise ValueError(f"--seeds is {text!r}; give whole numbers with commas between, such as 0,1,2.")
    return [int(name) for name in names]
