"""Run `capsmith diversity`: read caption columns, write the report, and print its answer and its first table."""

import json
import sys
from functools import partial
from pathlib import Path

from diversity.config import DiversityConfig
from diversity.inputs.count import EXAMPLE_IMAGES, count_columns
from diversity.inputs.specs import NO_IMAGES
from diversity.report import KIND, DiversityReport
from diversity.score import report
from imagetext.lock import LOCK, FolderLock, check_lock
from imagetext.outputs import UNFINISHED, write_file
from imagetext.shown import exit_without_reader, on_line, say_error

REPORT = "report.json"


def run(config: DiversityConfig) -> int:
    """Write report.json, report.md and report.html, print the answer and the first table, and return the exit code."""
    try:
        _check_output(config.output)  # before the lock, so that nothing is written into a folder of another kind
        with FolderLock(config.output):
            measured = _measure(config)
            _write(measured, config.output)
    except ValueError as error:
        say_error("diversity", error)
        return 2
    _print(measured, config.output)
    return 0


def _measure(config: DiversityConfig) -> DiversityReport:
    """Read and measure the inputs; raise ValueError where an input cannot be read."""
    device = _device(config)
    try:
        counted = count_columns(
            config.input,
            config.column,
            config.references,
            images=config.images,
            table=config.table,
            workers=config.workers,
            seed=config.seed,
            keep_images=_images_to_keep(config),
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
    except BrokenPipeError:  # an OSError, but one of the output: the reader of the progress bars has gone
        raise
    except OSError as error:
        raise ValueError(str(error)) from error


def _images_to_keep(config: DiversityConfig) -> int:
    """Return for how many pictures of the sample the image is read."""
    if config.images == [NO_IMAGES]:
        return 0
    return max(EXAMPLE_IMAGES, config.semantic_pictures if config.clip else 0)


def _write(measured: DiversityReport, folder: Path) -> None:
    """Write the three files, report.json first, because it marks the folder as a report of this command."""
    from diversity.page.page import render  # late: matplotlib and jinja2 take a second to import

    files = {REPORT: measured.to_json(), "report.md": measured.to_markdown(), "report.html": render(measured)}
    for name, text in files.items():
        check_lock(str(folder))
        write_file(folder / name, text)


def _check_output(folder: Path) -> None:
    """Raise `ValueError` unless the folder is new, empty, or holds an earlier report of this command."""
    if not folder.exists():
        return
    if folder.is_dir() and {file.name for file in folder.iterdir()} <= {LOCK, REPORT + UNFINISHED}:
        return
    try:
        is_report = json.loads((folder / REPORT).read_text(encoding="utf-8"))["kind"] == KIND
    except (OSError, ValueError, KeyError, TypeError):
        is_report = False
    if not is_report:
        raise ValueError(
            f"--output {folder}: the folder is not empty and holds no report of capsmith diversity; choose another "
            "folder"
        )


def _device(config: DiversityConfig) -> str:
    """Return the device of the models; raise `ValueError` where this machine has no such device."""
    if config.device is None and config.embedder == "none" and not config.clip:
        return "cpu"  # no model is loaded, so torch is not imported
    from captioners.device import choose_device

    return choose_device(config.device)


def _print(report: DiversityReport, folder: Path) -> None:
    """Print the answer, the first table, the notes and the path of the page."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("Captions", overflow="fold", min_width=len("Captions"))
    for measure in report.headline:
        header = [*measure.label.split(), measure.arrow]
        width = max(map(len, [*header, *map(measure.text, report.rows.values())]))
        table.add_column("\n".join(header).strip(), justify="right", min_width=width)
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
    console.print(table, crop=False)  # a narrow terminal never costs a column
    for note in report.notes:
        console.print(Text("\n" + on_line(note)))
    console.print(Text("\n" + on_line(f"Report: {folder / 'report.html'}")), soft_wrap=True)
