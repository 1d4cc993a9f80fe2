"""`capsmith diversity`: reads caption columns, prints the answer and the first table, writes the report."""

import json
import sys
from functools import partial
from pathlib import Path

from diversity.config import DiversityConfig
from diversity.inputs.count import count_columns
from diversity.inputs.specs import NO_IMAGES
from diversity.report import KIND, DiversityReport
from diversity.score import report
from imagetext.lock import LOCK, FolderLock, check_lock
from imagetext.outputs import UNFINISHED, write_file
from imagetext.shown import exit_without_reader, on_line, say_error

REPORT = "report.json"


def run(config: DiversityConfig) -> int:
    """Prints the first table, writes report.json, report.md and report.html, and returns the exit code."""
    try:
        _check_output(config.output)  # then not even a lock is written there
        with FolderLock(config.output):
            measured = _measured(config)
            _write(measured, config.output)
    except ValueError as error:
        say_error("diversity", error)
        return 2
    _print(measured, config.output)
    return 0


def _measured(config: DiversityConfig) -> DiversityReport:
    """The report; ValueError where an input cannot be read."""
    device = _device(config)
    try:
        counted = count_columns(
            config.input,
            config.column,
            config.references,
            config.images,
            table=config.table,
            workers=config.workers,
            seed=config.seed,
            keep_images=_pictures_kept(config),
            output=config.output,
        )
        return report(
            counted,
            embedder=config.embedder,
            clip=config.clip,
            device=device,
            semantic_pictures=config.semantic_pictures,
            seed=config.seed,
        )
    except BrokenPipeError:  # nobody reads what is printed
        raise
    except OSError as error:
        raise ValueError(str(error)) from error


def _pictures_kept(config: DiversityConfig) -> int:
    """How many pictures of the sample are read."""
    if config.images == [NO_IMAGES]:
        return 0
    return max(48, config.semantic_pictures if config.clip else 0)


def _write(found: DiversityReport, folder: Path) -> None:
    """Writes the three files, report.json first: it says whose folder this is."""
    from diversity.page.page import render  # late: matplotlib and jinja2 take a second to import

    files = {REPORT: found.to_json(), "report.md": found.to_markdown(), "report.html": render(found)}
    for name, text in files.items():
        check_lock(str(folder))
        write_file(folder / name, text)


def _check_output(folder: Path) -> None:
    """Raises `ValueError` unless the folder is empty, new, or holds an earlier report."""
    if not folder.exists() or (
        folder.is_dir() and {one.name for one in folder.iterdir()} <= {LOCK, REPORT + UNFINISHED}
    ):
        return
    try:
        ours = json.loads((folder / REPORT).read_text(encoding="utf-8"))["kind"] == KIND
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise ValueError(f"--output {folder}: not empty, and no report of capsmith diversity; choose another folder")


def _device(config: DiversityConfig) -> str:
    """Where the models compute; raises `ValueError` where there is no such device."""
    if config.device is None and config.embedder == "none" and not config.clip:
        return "cpu"  # there are no models, and so torch is not imported
    from captioners.device import choose_device

    return choose_device(config.device)


def _print(report: DiversityReport, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("Captions", overflow="fold")
    for measure in report.headline:
        table.add_column(f"{measure.label} {measure.arrow}".strip(), justify="right", min_width=len(measure.label))
    for name, row in report.rows.items():
        table.add_row(
            Text(on_line(report.labels[name])),
            *(measure.text(row) for measure in report.headline),
            style="dim" if name == report.references else "",
        )
    console = Console()
    console.on_broken_pipe = partial(exit_without_reader, sys.stdout)
    for sentence in report.answer:
        console.print(Text(on_line(sentence)))
    console.print()
    console.print(table)
    for note in report.notes:
        console.print(Text("\n" + on_line(note)))
    console.print(Text("\n" + on_line(f"Report: {folder / 'report.html'}")), soft_wrap=True)
