"""Samples that cannot be trained on: they are reported, and too many of them are an error."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from finetune.folder import REJECTS
from imagetext.outputs import write_file
from imagetext.readers.chats import answers_of
from imagetext.sample import Record
from imagetext.shown import masked, say

NO_CAPTION = "no caption"
NAMED = 3  # number of rejects that an error names


class Tolerance(Protocol):
    """A configuration with the largest share of samples that may be unusable."""

    @property
    def max_error_rate(self) -> float:
        """The largest share."""
        ...


def why_no_caption(sample: Record) -> str:
    """Return the reason why a sample without captions cannot be used."""
    for name, value in sample.meta.items():
        if (count := len(answers_of(value))) > 1:
            return (
                f"{NO_CAPTION}: {name!r} is a conversation with {count} answers, and only a single answer is surely a "
                "caption; if another column holds captions, --caption-column names it"
            )
    return NO_CAPTION


def check_rejects(
    rejects: Sequence[tuple[str, str]], usable: int, config: Tolerance, *, flag: str = "--input"
) -> None:
    """Raise ValueError if a larger share of the pictures is broken or missing than `--max-error-rate` allows.

    rejects: without the rows that the input itself marks as failed, because these do not show that the input is
    damaged. flag: the one that names the input.
    """
    failed = [(key, error) for key, error in rejects if not error.startswith(NO_CAPTION)]
    rate = len(failed) / (len(failed) + usable)
    if rate > config.max_error_rate:
        raise ValueError(
            f"{flag}: {len(failed):,} of {len(failed) + usable:,} samples cannot be used, {rate:.1%}, and "
            f"--max-error-rate allows {config.max_error_rate:.1%}{first_of(failed)}"
        )


def first_of(rejects: Sequence[tuple[str, str]]) -> str:
    """Return the end of an error: a colon, and the first samples that cannot be used, a line each; "" for none."""
    lines = [f"{key}: {error}" for key, error in rejects[:NAMED]]
    if len(rejects) > NAMED:
        lines.append(f"and {len(rejects) - NAMED:,} more")
    return "\n  ".join([":", *lines]) if lines else ""


def report_rejects(rejects: Sequence[tuple[str, str]], failed_before: Sequence[tuple[str, str]], output: Path) -> None:
    """Write the samples that cannot be used, each with its reason, to `rejects.jsonl`, and print how many there are.

    failed_before: the rows that the input itself marks as failed.
    """
    if rejects or failed_before:
        lines = [json.dumps({"key": key, "error": masked(error)}) + "\n" for key, error in [*rejects, *failed_before]]
        write_file(output / REJECTS, "".join(lines))
    if rejects:
        key, error = rejects[0]
        say(
            f"{len(rejects):,} samples cannot be used and are left out, see {output / REJECTS}; the first is {key!r}: "
            f"{masked(error)}"
        )
    if failed_before:
        say(
            f"{len(failed_before):,} rows of the input had failed before, in the run that wrote it, and are skipped, "
            f"see {output / REJECTS}"
        )
