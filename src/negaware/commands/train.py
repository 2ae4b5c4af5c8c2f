"""`negaware train`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from negaware.commands.interrupted import imports

TRAIN_EPILOG = """Any field of the config can be given as --field.name VALUE, such as --run.seed 1 or
--training.learning_rate 1e-5. The run goes to runs/<config name> unless
--run.folder says otherwise. The fields are listed in docs/config.md and by --dry-run."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser("train", help="run a config", epilog=TRAIN_EPILOG, allow_abbrev=False)
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="resume the run in the run folder, if there is one")
    existing.add_argument("--force", action="store_true", help="delete the run in the run folder first")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and the plan of a step")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    with imports(options):
        from negaware.config import load_config
    config = load_config(options.config, options.overrides)
    if options.dry_run:
        if os.environ.get("RANK", "0") != "0":
            return
        with imports(options):
            from negaware.planning.report import print_plan
        print_plan(config)
        return
    with imports(options):
        from negaware.loop.train import train
        from negaware.ranks import joined_ranks
    with joined_ranks() as ranks:
        judges = options.config.parent
        folder = train(config, resume=options.resume, force=options.force, ranks=ranks, judges=judges)
    if ranks.is_first:
        print_outcome(folder)


def print_outcome(folder: Path) -> None:
    """Prints the results of a finished run, and where its report and model are."""
    from rich.console import Console

    from negaware.runs.folder import RunFolder
    from negaware.runs.progress import format_seconds
    from negaware.runs.summary import before_after_table

    summary = RunFolder.open(folder).read_summary()
    assert summary is not None
    console = Console()
    console.print(before_after_table(summary).rich(), width=None if console.is_terminal else 200)
    training, whole = (format_seconds(summary[name]) for name in ("train_seconds", "total_seconds"))
    print(f"time    training {training}, whole run {whole}")
    print(f"report  {folder / 'report.html'}")
    print(f"model   {folder / 'model'}")
    needs = "" if (folder / "model" / "config.json").exists() else "  (it is adapters: with peft installed)"
    print(f'load it with:  transformers.AutoModelForCausalLM.from_pretrained("{folder / "model"}"){needs}')
