"""`capsmith diversity`: reads caption columns, prints the answer and the first table, writes the report."""

import json
import sys
from pathlib import Path

from diversity.config import DiversityConfig
from diversity.counting import count_columns
from diversity.report import KIND, DiversityReport
from diversity.score import report
from imagetext.outputs import UNFINISHED, write_file

REPORT = "report.json"


def run(config: DiversityConfig) -> int:
    """Prints the first table, writes report.json, report.md and report.html, and returns the exit code."""
    try:
        _check_output(config.output)
        device = _device(config)
        counted = count_columns(config.input, config.column, config.references, config.images, table=config.table, workers=config.workers,
                                seed=config.seed, keep_images=max(48, config.semantic_pictures if config.clip else 0))
        found = report(counted, embedder=config.embedder, clip=config.clip, device=device,
                       semantic_pictures=config.semantic_pictures, seed=config.seed)
    except (ValueError, OSError) as error:
        print(f"capsmith diversity: {error}", file=sys.stderr)
        return 2
    from diversity.page import render  # late: matplotlib and jinja2 take a second to import

    write_file(config.output / REPORT, found.to_json())  # first: by it a run that was killed here knows its folder again
    write_file(config.output / "report.html", render(found))
    write_file(config.output / "report.md", found.to_markdown())
    _print(found, config.output)
    return 0


def _check_output(folder: Path) -> None:
    """Raises `ValueError` unless the folder is empty, new, or holds an earlier report."""
    if not folder.exists() or (folder.is_dir() and not {path.name for path in folder.iterdir()} - {REPORT + UNFINISHED}):
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
        table.add_row(Text(report.labels[name]), *(measure.text(row) for measure in report.headline),
                      style="dim" if name == report.references else "")
    console = Console()
    for sentence in report.answer:
        console.print(Text(sentence))
    console.print()
    console.print(table)
    for note in report.notes:
        console.print(Text(f"\n{note}"))
    console.print(Text(f"\nReport: {folder / 'report.html'}"), soft_wrap=True)
