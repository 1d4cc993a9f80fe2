"""Scores of caption columns beside the human captions, as a `DiversityReport`; and the command that writes one."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diversity import measures
from diversity.accumulate import CaptionAccumulator, find_caption
from diversity.columns import HUMAN, Columns, read_columns
from diversity.config import DiversityConfig
from diversity.fidelity import count_true, degenerate_reasons
from diversity.lexical import MBLEU_SMOOTHING
from diversity.tokens import TOKENIZER

KIND = "capsmith diversity report"
PICTURES_SHOWN = 12
COLLAPSE = 0.05        # of the pictures under one caption is worth a warning, from
COLLAPSE_PICTURES = 10

Groups = Sequence[Sequence[str]]  # the captions of each picture


class ExampleCaption(NamedTuple):
    """A caption, why it is degenerate, and how many of the facts it states are true (true, stated) where known."""

    text: str
    reasons: tuple[str, ...]
    facts: tuple[int, int] | None


@dataclass(frozen=True)
class Example:
    """A picture of the report with the captions of each column."""

    key: str
    image: bytes | None
    captions: Mapping[str, tuple[ExampleCaption, ...]]


@dataclass(frozen=True)
class DiversityReport:
    """Measures of each column on the same pictures: `rows[column][measure]`, see `diversity.measures`."""

    rows: Mapping[str, Mapping[str, Any]]
    references: str | None                        # the row of human captions
    degenerate_examples: Mapping[str, Mapping[str, Sequence[str]]]  # column -> reason -> captions
    notes: tuple[str, ...]                        # what a reader must know before the numbers
    examples: tuple[Example, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=lambda: _settings())

    @property
    def facts_known(self) -> bool:
        return any(row["facts"] is not None for row in self.rows.values())

    @property
    def labels(self) -> Mapping[str, str]:
        """The columns' names as tables show them: without syn_text_, where that leaves them apart."""
        short = {name: name.removeprefix("syn_text_") for name in self.rows}
        return short if len(set(short.values())) == len(short) else {name: name for name in self.rows}

    @property
    def headline(self) -> tuple[measures.Measure, ...]:
        """The measures of the first table."""
        return measures.headline(self.facts_known)

    def to_json(self) -> str:
        """Everything but the example pictures, in full precision."""
        content = {"kind": KIND, "settings": self.settings, "notes": self.notes, "references": self.references,
                   "columns": self.rows, "degenerate_examples": self.degenerate_examples}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The first table and the notes."""
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
        lines = [line(["Captions", *(f"{m.label} {m.arrow}".strip() for m in self.headline)]),
                 line(["---", *("---:" for _ in self.headline)])]
        lines += [line([name, *(m.text(row) for m in self.headline)]) for name, row in self.rows.items()]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]) + "\n"

    def to_html(self) -> str:
        """One page with nothing outside it: tables, plots, example pictures."""
        from diversity.page import render  # matplotlib and jinja2 take a second to import

        return render(self)


def score_captions(captions: Mapping[str, Groups], *, references: Groups | None = None,
                   references_name: str = f"{HUMAN} (human)", scenes: Sequence[Mapping[str, Any] | None] | None = None,
                   truncated: Mapping[str, Sequence[Sequence[bool]]] | None = None, keys: Sequence[str] | None = None,
                   images: Sequence[bytes | None] | None = None) -> DiversityReport:
    """Measures columns of captions, `{"name": [[caption, ...] per picture]}`, against each other and human references.

    All sequences are per picture, in one order. Columns are compared on the pictures for which all of them (and the
    references) have captions, with equally many captions of a picture: its least count, the first ones. `scenes`
    describe built-in pictures, whose facts are then checked; `truncated` marks captions that a length limit cut; `keys`
    and encoded `images` serve the examples. Raises `ValueError` that names every column that does not fit.
    """
    columns = {**captions, **({references_name: references} if references is not None else {})}
    _check(columns, captions, references_name, references, truncated or {},
           {"scenes": scenes, "keys": keys, "images": images})
    total = len(next(iter(columns.values())))
    kept = [at for at in range(total) if all(len(groups[at]) for groups in columns.values())]
    if not kept:
        raise ValueError(f"no picture has captions in all of {', '.join(columns)}")
    least = {at: min(len(groups[at]) for groups in columns.values()) for at in kept}
    shortened = [name for name, groups in columns.items() if any(len(groups[at]) > least[at] for at in kept)]

    rows, degenerate_examples, notes = {}, {}, []
    if len(kept) < total:
        notes.append(f"Compared on {len(kept)} of {total} pictures: those for which every column has a caption.")
    if shortened:
        notes.append("Each picture counts with as many captions as its shortest column has, the first ones: "
                     f"{', '.join(shortened)} had more.")
    if references is None:
        notes.append("No human captions to compare with. Noise looks diverse: read spread with care.")
    for name, groups in columns.items():
        groups = [groups[at][:least[at]] for at in kept]
        marks = (truncated or {}).get(name)
        accumulator = CaptionAccumulator()
        accumulator.update(groups, [marks[at][:least[at]] for at in kept] if marks is not None else None,
                           [scenes[at] for at in kept] if scenes is not None else None)
        rows[name] = accumulator.result()
        degenerate_examples[name] = {reason: found for reason, found in accumulator.examples.items() if found}
        notes += _collapse(name, accumulator, groups)
    if all(row["facts"] is None for row in rows.values()):
        notes.append("What the pictures show is not known here: fidelity is degenerate captions only, and a fluent caption of "
                     "another picture passes.")
    examples = []
    for at in _shown(kept, images):
        shown = {name: tuple(ExampleCaption(caption, degenerate_reasons(caption, bool(truncated and name in truncated
                                                                                      and truncated[name][at][i])),
                                            count_true(caption, scenes[at]) if scenes and scenes[at] else None)
                             for i, caption in enumerate(groups[at][:least[at]])) for name, groups in columns.items()}
        examples.append(Example(keys[at] if keys else str(at), images[at] if images else None, shown))
    return DiversityReport(rows, references_name if references is not None else None, degenerate_examples, tuple(notes),
                           tuple(examples))


def _check(columns: Mapping[str, Groups], captions: Mapping[str, Groups], references_name: str, references: Groups | None,
           truncated: Mapping[str, Any], per_picture: Mapping[str, Sequence | None]) -> None:
    problems = [] if captions else ["no column of captions"]
    if references is not None and references_name in captions:
        problems.append(f"{references_name!r} is a column and the references' name")
    for name, groups in columns.items():
        wrong = next((at for at, group in enumerate(groups)
                      if isinstance(group, str) or not all(isinstance(caption, str) for caption in group)), None)
        if wrong is not None:
            problems.append(f"column {name!r}, picture {wrong}: {groups[wrong]!r} is not a list of strings")
    sizes = {f"column {name!r}": len(groups) for name, groups in columns.items()}
    sizes |= {name: len(values) for name, values in per_picture.items() if values is not None}
    if len(set(sizes.values())) > 1:
        problems.append("unequal numbers of pictures: " + ", ".join(f"{name} {size}" for name, size in sizes.items()))
    for name, marks in truncated.items():
        if name not in columns:
            problems.append(f"truncated {name!r}: no such column")
        elif list(map(len, marks)) != list(map(len, columns[name])):
            problems.append(f"truncated {name!r}: not one mark for each caption")
    if problems:
        raise ValueError("; ".join(problems))


def _collapse(name: str, accumulator: CaptionAccumulator, groups: Groups) -> list[str]:
    """A warning where one caption stands for many pictures."""
    share = measures.MOST_SHARED.value(accumulator.result())
    if share < COLLAPSE or share * len(groups) < COLLAPSE_PICTURES:
        return []
    caption = find_caption(groups, accumulator.most_shared_hash())
    return [f"{name}: one caption stands for {100 * share:.0f} % of the pictures: “{caption}”"]


def _shown(kept: Sequence[int], images: Sequence[bytes | None] | None) -> list[int]:
    """Which pictures the report shows: a dozen, evenly spaced, those whose image is here first."""
    seen = [at for at in kept if images is not None and images[at]] or list(kept)
    return [seen[int(at)] for at in np.unique(np.linspace(0, len(seen) - 1, PICTURES_SHOWN).round())]


def _settings() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for name in ("capsmith", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {"tokenizer": TOKENIZER, "mbleu_smoothing": MBLEU_SMOOTHING, "versions": versions}


# --- the command ---------------------------------------------------------------------------------------------------


def run(config: DiversityConfig) -> int:
    """`capsmith diversity`: prints the first table, writes report.json and report.html, returns the exit code."""
    from rich.console import Console
    from rich.progress import track

    from imagetext.sources import read_records

    try:
        _check_output(config.output)
        records = (record for spec in config.input for record in read_records(spec))
        found = read_columns(track(records, "Reading", console=Console(stderr=True), transient=True), config.column,
                             config.references)
        report = _score(found)
    except (ValueError, OSError) as error:
        print(f"capsmith diversity: {error}", file=sys.stderr)
        return 2
    config.output.mkdir(parents=True, exist_ok=True)
    _write(config.output / "report.html", report.to_html())
    _write(config.output / "report.json", report.to_json())
    _print(report, config.output)
    return 0


def _score(found: Columns) -> DiversityReport:
    pictures = found.pictures
    human = {"references": [picture.references for picture in pictures]} if found.references else {}
    if found.references not in (None, HUMAN):
        human["references_name"] = f"{found.references} (reference)"
    # No marks for a picture are marks that say no.
    truncated = {name: [picture.truncated.get(name) or (False,) * len(picture.captions.get(name, ())) for picture in pictures]
                 for name in found.names}
    report = score_captions({name: [picture.captions.get(name, ()) for picture in pictures] for name in found.names}, **human,
                            scenes=[picture.scene for picture in pictures], truncated=truncated,
                            keys=[picture.key for picture in pictures], images=[picture.image for picture in pictures])
    if found.failed:
        report = replace(report, notes=(f"{found.failed} records failed and have no captions.", *report.notes))
    return report


def _check_output(folder: Path) -> None:
    """Raises `ValueError` unless the folder is empty, new, or holds an earlier report."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        ours = json.loads((folder / "report.json").read_text(encoding="utf-8"))["kind"] == KIND
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise ValueError(f"--output {folder}: not empty, and no report of capsmith diversity; choose another folder")


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


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
    first = next(iter(report.rows.values()))
    console.print(f"{measures.PICTURES.text(first)} pictures, {measures.CAPTIONS.text(first)} captions of each column\n")
    console.print(table)
    for note in report.notes:
        console.print(Text(f"\n{note}"))
    console.print(Text(f"\nReport: {folder / 'report.html'}"), soft_wrap=True)
