"""`negaware report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from negaware.commands.interrupted import imports


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser("report", help="one self-contained page about runs or about a study")
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="folders of runs, or of one study")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), help="the page to write (default report.html here)"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    with imports(options):
        from negaware.runs.report import require_report, write_report
    require_report(options.output)
    study = next((Path(folder) for folder in options.runs if (Path(folder) / "study.yaml").is_file()), None)
    if study is None:
        print(write_report(options.runs, options.output))
        return
    if len(options.runs) > 1:
        raise ValueError(
            f"{study} is a study's folder; a page is about one study or about runs, so give that folder alone."
        )
    with imports(options):
        from negaware.studies.folder import read_results
        from negaware.studies.page import write_page
    print(write_page(read_results(study), study, options.output))
