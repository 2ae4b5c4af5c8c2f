"""The command line. Everything heavy is imported by the command that needs it, so that `--help` is instant.

What the user can mend ends in one sentence and exit code 2; Ctrl-C in 130.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from negaware import __version__
from negaware.arguments import Parser, above_zero, fraction, positive
from negaware.complaint import sentence_of

TRAIN_EPILOG = """Any field of the config can be given as --field.name VALUE, such as --run.seed 1 or
--training.learning_rate 1e-5. The run goes to runs/<config name> unless
--run.folder says otherwise. The fields are listed in docs/config.md and by --dry-run."""

INTERRUPTED = 130  # the exit code of a process that Ctrl-C ended
HOW_TO_GO_ON = {
    "train": "--resume goes on from the last finished step.",
    "study": "The same command goes on from the last finished step of each run.",
    "compare": "The same command goes on from the last finished step of each run.",
}

TASK_HELP = (
    "gsm8k:test, math500, arithmetic:test, reasoning_gym:NAME, problems.jsonl, owner/name of a hub data set …, or "
    "written out as in a config: '{kind: benchmark, name: math500, verifier: \"my_rules:is_right\"}'"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("train", "compare", "plan"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.overrides = rest
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # OpenMP's threads spin for milliseconds while they wait: beside any other busy process that costs two thirds of the
    # speed. Not at all, and each small operation waits to be woken (docs/performance.md). It is read by torch's import.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from negaware.models.memory import keep_freed_memory

    keep_freed_memory()
    for name in ("stdout", "stderr"):  # a daemon may start us with either closed
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as `entry` leaves it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run: Callable[[argparse.Namespace], int | None] = options.run
        exit_code = run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends what is left of the exit, without a traceback
        print(_interrupted(options), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing is left to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if options.command not in HOW_TO_GO_ON or options.dry_run:
            return 0
        return _failed(f"nobody reads the output any more. {HOW_TO_GO_ON[options.command]}")
    except Exception as error:
        if (sentence := sentence_of(error)) is None:
            raise
        return _failed(sentence)
    return exit_code or 0


def _failed(sentence: str) -> int:
    print(f"negaware: error{_on_rank()}: {sentence}", file=sys.stderr)
    return 2


def _on_rank() -> str:
    """Which of torchrun's ranks this is, if another than the first: that one goes first.

    If it fails too, most likely of the same, torchrun ends this one before it says so again.
    """
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        return ""
    time.sleep(2)
    return f" on rank {rank}"


def _interrupted(options: argparse.Namespace) -> str:
    return f"\nInterrupted. {HOW_TO_GO_ON.get(options.command, '')}"


@contextmanager
def _imports(options: argparse.Namespace) -> Iterator[None]:
    """A block of imports, in which Ctrl-C ends the process at once.

    A KeyboardInterrupt there may be swallowed by a module's own `except`, and surface as anything.
    """

    def leave(signal_number: int, frame: FrameType | None) -> None:
        os.write(2, f"{_interrupted(options)}\n".encode())
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="negaware", description="Trains a language model on its own right and wrong answers (NFT).")
    parser.add_argument("--version", action="version", version=f"negaware {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="run a config", epilog=TRAIN_EPILOG, allow_abbrev=False)
    train.add_argument("config", type=Path, metavar="CONFIG.yaml")
    existing = train.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on with the run in the run folder, if there is one")
    existing.add_argument("--force", action="store_true", help="delete the run in the run folder first")
    train.add_argument("--dry-run", action="store_true", help="print the resolved config and a step's arithmetic")
    train.set_defaults(run=_train)

    plan = commands.add_parser(
        "plan",
        help="memory and time of a config on GPUs, on paper",
        epilog="The exit code is 1 if it doesn't fit. Fields of the config can be given as for train. The defaults are "
        "an H100's.",
        allow_abbrev=False,
    )
    plan.add_argument("config", type=Path, metavar="CONFIG.yaml")
    plan.add_argument("--gpus", type=positive, required=True, metavar="N", help="GPUs, one rank each")
    plan.add_argument("--memory-gib", type=above_zero, required=True, metavar="M", help="a GPU's memory")
    plan.add_argument(
        "--efficiency", type=fraction, default=0.4, help="share of a GPU's peaks that is reached (default 0.4)"
    )
    plan.add_argument("--tflops", type=above_zero, default=989, help="a GPU's peak, TFLOP/s (default 989)")
    plan.add_argument("--bandwidth", type=above_zero, default=3.35, help="of its memory, TB/s (default 3.35)")
    plan.add_argument("--network", type=above_zero, default=40, help="between GPUs, GB/s each, reached (default 40)")
    plan.set_defaults(run=_plan)

    evaluate = commands.add_parser("evaluate", help="avg@k, pass@k and maj@k of a model on a task")
    evaluate.add_argument("model", metavar="MODEL", help="a folder, a hub name, or smollm2-135m-instruct")
    evaluate.add_argument("--task", required=True, help=TASK_HELP)
    evaluate.add_argument("--samples", type=positive, default=1, metavar="K", help="answers a problem (default 1)")
    evaluate.add_argument("--temperature", type=float, help="default: 0 for one sample, 1 for more")
    evaluate.add_argument("--top-p", type=float, default=1.0, help="nucleus mass (default 1: all tokens)")
    evaluate.add_argument("--top-k", type=int, default=0, help="most probable tokens kept (default 0: all)")
    evaluate.add_argument("--max-new-tokens", type=positive, default=2048, help="longest answer (default 2048)")
    evaluate.add_argument("--num-problems", type=positive, help="the first so many (default: all)")
    evaluate.add_argument("--seed", type=int, default=0, help="another seed samples other answers (default 0)")
    evaluate.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto", help="default auto")
    evaluate.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if there is one"
    )
    evaluate.add_argument(
        "-o", "--output", type=Path, help="per-problem results as JSONL (default: a new TASK-MODEL-K.jsonl here)"
    )
    _add_data_dir(evaluate)
    evaluate.set_defaults(run=_evaluate)

    grade = commands.add_parser("grade", help='verdicts for a file of {"prediction": …, "gold": …} lines')
    grade.add_argument("file", type=Path, metavar="FILE.jsonl")
    grade.add_argument("-o", "--output", type=Path, metavar="OUT.jsonl", help="default: standard output")
    grade.add_argument("--extract", default="auto", help="auto, or methods by name: boxed,answer_is,last_number")
    grade.set_defaults(run=_grade)

    audit = commands.add_parser(
        "audit",
        help="check that a task's gold answers pass its own verifier",
        epilog="The exit code is 1 if one doesn't.",
    )
    audit.add_argument("task", metavar="TASK", help=TASK_HELP)
    _add_data_dir(audit)
    audit.set_defaults(run=_audit)

    report = commands.add_parser("report", help="one self-contained page about one or several runs, or a study")
    report.add_argument("runs", nargs="+", metavar="FOLDER", help="of runs, or of one study")
    report.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), help="the page to write (default report.html here)"
    )
    report.set_defaults(run=_report)

    study = commands.add_parser(
        "study",
        help="variants of a config × seeds: runs, tables, figures",
        epilog="docs/studies.md says what the file holds. The same command goes on where it was, also when variants or "
        "seeds were added.",
    )
    study.add_argument("study", type=Path, metavar="STUDY.yaml")
    study.set_defaults(run=_study)

    compare = commands.add_parser(
        "compare",
        help="the same without a file: variants of a config × seeds",
        epilog="All goes to runs/<config name>-compare; the same command goes on where it was. Fields of the config "
        "can be given as for train.",
        allow_abbrev=False,
    )
    compare.add_argument("config", type=Path, metavar="CONFIG.yaml")
    compare.add_argument("--objectives", help="such as nft,rft,my_losses:my_loss")
    compare.add_argument(
        "--vary", action="append", default=[], metavar="FIELD=A,B", help="a field's values; several: all combinations"
    )
    compare.add_argument("--seeds", default="0", help="such as 0,1,2 or 0-4 (default 0)")
    compare.set_defaults(run=_compare)
    for each in (study, compare):
        each.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs side by side (default 1)")
        each.add_argument("--dry-run", action="store_true", help="print the runs and how long they may take")
    return parser


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=Path, help="a folder of local files that stand in for the hub's named sets")


def _train(options: argparse.Namespace) -> None:
    with _imports(options):
        from negaware.config import load_config
    config = load_config(options.config, options.overrides)
    if options.dry_run:
        if os.environ.get("RANK", "0") != "0":
            return
        with _imports(options):
            from negaware.planning.report import print_plan
        print_plan(config)
        return
    with _imports(options):
        from negaware.ranks import joined_ranks
        from negaware.train import train
    with joined_ranks() as ranks:
        judges = options.config.parent
        folder = train(config, resume=options.resume, force=options.force, ranks=ranks, judges=judges)
    if ranks.is_first:
        print_outcome(folder)


def print_outcome(folder: Path) -> None:
    """What a finished run came to, and where its parts are."""
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


def _plan(options: argparse.Namespace) -> int:
    with _imports(options):
        from negaware.planning.report import plan_command
        from negaware.planning.setting import GIB, Machine
    machine = Machine(
        memory=int(options.memory_gib * GIB),
        operations=options.tflops * 1e12,
        bandwidth=options.bandwidth * 1e12,
        network=options.network * 1e9,
        efficiency=options.efficiency,
    )
    return plan_command(options.config, options.overrides, options.gpus, machine)


def _evaluate(options: argparse.Namespace) -> None:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("negaware evaluate runs in one process; start it without torchrun.")
    with _imports(options):
        from negaware.evaluate import evaluate_model
    evaluate_model(options)


def _grade(options: argparse.Namespace) -> None:
    with _imports(options):
        from negaware.verifiers.grade import grade_command
    grade_command(options.file, options.output, options.extract)


def _audit(options: argparse.Namespace) -> int:
    with _imports(options):
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        from negaware.tasks.audit import audit_task
        from negaware.tasks.load import load_task
        from negaware.tasks.options import parse_task
    task = load_task(parse_task(options.task), options.data_dir)
    console = Console(stderr=True)
    columns = *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            line = progress.add_task("gold answers", total=len(task.problems))
            result = audit_task(task, lambda number: progress.advance(line, number))
    finally:
        task.verifier.close()
    for failure in result.failures:
        print(f"{failure.problem.id}: {failure.why}")
    for problem in result.textual:
        print(f"{problem.id}: the gold answer {problem.answer!r} has no value; only the same spelling passes")
    for problem in result.unread:
        print(f"{problem.id}: the gold answer {problem.answer!r} could not be read in time; is the machine busy?")
    for group in result.conflicts:
        answers = ", ".join(f"{problem.id} {problem.answer!r}" for problem in group)
        print(f"the same question with different answers: {answers}")
    unread = f"{len(result.unread):,} not read in time, " if result.unread else ""
    print(
        f"{task.name}: {result.num_passing:,} of {result.num_problems:,} gold answers pass their own verifier "
        f"({len(result.failures):,} fail, {len(result.textual):,} only by spelling, "
        f"{unread}{result.num_repeats:,} repeated questions, {len(result.conflicts):,} in conflict)"
    )
    return 1 if result.failures else 0


def _report(options: argparse.Namespace) -> None:
    with _imports(options):
        from negaware.runs.report import require_report, write_report
    require_report(options.output)
    study = next((Path(folder) for folder in options.runs if (Path(folder) / "study.yaml").is_file()), None)
    if study is None:
        print(write_report(options.runs, options.output))
        return
    if len(options.runs) > 1:
        raise ValueError(f"{study} is a study's folder, and a page is of one study or of runs; give it alone.")
    with _imports(options):
        from negaware.studies.folder import read_results
        from negaware.studies.page import write_page
    print(write_page(read_results(study), study, options.output))


def _study(options: argparse.Namespace) -> int:
    with _imports(options):
        from negaware.studies.study import study_command
    return study_command(options.study, options.jobs, options.dry_run)


def _compare(options: argparse.Namespace) -> int:
    with _imports(options):
        from negaware.compare import compare
    return compare(options)
