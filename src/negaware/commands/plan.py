"""`negaware plan`."""

from __future__ import annotations

import argparse
from pathlib import Path

from negaware.arguments import above_zero, fraction, positive
from negaware.commands.interrupted import imports


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "plan",
        help="memory and time of a config on GPUs, computed without one",
        epilog="The exit code is 1 if it doesn't fit. Fields of the config can be given as for train. The defaults are "
        "an H100's.",
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument("--gpus", type=positive, required=True, metavar="N", help="GPUs, one rank each")
    parser.add_argument("--memory-gib", type=above_zero, required=True, metavar="M", help="a GPU's memory")
    parser.add_argument(
        "--efficiency", type=fraction, default=0.4, help="fraction of a GPU's peaks that is reached (default 0.4)"
    )
    parser.add_argument("--tflops", type=above_zero, default=989, help="a GPU's peak, TFLOP/s (default 989)")
    parser.add_argument(
        "--bandwidth", type=above_zero, default=3.35, help="bandwidth of a GPU's memory, TB/s (default 3.35)"
    )
    parser.add_argument(
        "--network", type=above_zero, default=40, help="speed reached between GPUs, GB/s each (default 40)"
    )
    parser.add_argument("--staleness", type=positive, metavar="N", help="also plan sampling ahead by at most N updates")
    parser.add_argument(
        "--lengths",
        metavar="FILE|MEAN,MEDIAN",
        help="for --staleness, the lengths of answers: a file of a run's answers/, or mean and median in tokens of a "
        "log-normal distribution that is cut at rollout.max_new_tokens",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    with imports(options):
        from negaware.planning.report import plan_command
        from negaware.planning.setting import GIB, Machine
    machine = Machine(
        memory=int(options.memory_gib * GIB),
        operations=options.tflops * 1e12,
        bandwidth=options.bandwidth * 1e12,
        network=options.network * 1e9,
        efficiency=options.efficiency,
    )
    if (options.staleness is None) != (options.lengths is None):
        missing, what = ("--lengths", "how long answers are") if options.lengths is None else ("--staleness", "updates")
        raise ValueError(f"--staleness and --lengths need each other; give {missing} ({what}) too.")
    ahead = None if options.staleness is None else (options.staleness, options.lengths)
    return plan_command(options.config, options.overrides, options.gpus, machine, ahead)
