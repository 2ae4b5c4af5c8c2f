"""A study's output files, and the lines that a dry run prints."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from negaware.config import parse_config
from negaware.planning.report import rollout_lines
from negaware.runs.progress import format_seconds
from negaware.studies.check import Checked
from negaware.studies.figures import write_figures
from negaware.studies.folder import StudyFolder
from negaware.studies.options import StudyOptions, assignments
from negaware.studies.page import write_page
from negaware.studies.progress import RunTimes, last_line
from negaware.studies.results import StudyResults
from negaware.studies.tables import write_tables


def write_outputs(folder: StudyFolder, results: StudyResults) -> None:
    """Writes tables, figures and page of the finished runs, and prints where they are."""
    if not results.runs:
        return
    folder.write_tables(results)
    console = Console(width=None if sys.stdout.isatty() else 200)  # without a terminal rich would take a width of 80
    for table in write_tables(results, folder.path):
        console.print(table.rich())
    write_figures(results, folder.path)
    page = write_page(results, folder.path)
    print(f"data     {folder.path / 'figures.csv'}, {folder.path / 'outcomes.csv'}")
    print(f"tables   {folder.path / 'tables.md'}, {folder.path / 'tables.tex'}")
    print(f"figures  {folder.path / 'figures'}")
    print(f"page     {page}")


def matrix_lines(
    study: StudyOptions, checked: Checked, folder: StudyFolder, times: RunTimes, jobs: int, code_folder: Path
) -> Iterator[str]:
    """A line for each run and how far it is; the fields of each variant; how long the rest may take."""
    names = max(len(job.name) for job in checked.jobs)
    for number, job in enumerate(checked.jobs, start=1):
        step = int(last_line(folder.path / "runs" / job.name / "metrics.jsonl").get("step", 0))
        state = "done" if job.name in checked.done else f"step {step} of {job.steps}" if step else "to do"
        yield f"{number:4}  {job.name:{names}}  {state}"
    yield ""
    for name, fields in study.variants.items():
        shown = ", ".join(f"{'.'.join(field)}: {value}" for field, value in assignments(fields, name))
        yield f"{name}: {shown or 'the base as it is'}"
    yield ""
    waiting = checked.waiting
    yield f"{len(checked.jobs)} runs, {len(checked.done)} done, {len(waiting)} to do, {jobs} at a time"
    if not waiting:
        return
    left = times.left(waiting, [], min(jobs, len(waiting)))
    if left is not None:
        known = sum(map(len, times.seconds.values()))
        yield f"about {format_seconds(left)} for the runs to do, by the {known} that are done"
        return
    yield "No run is done yet, so the time isn't known. A run:"
    config = parse_config(dict(waiting[0].config), folders=(code_folder, Path()))
    yield from (f"  {line}" for line in rollout_lines(config))
