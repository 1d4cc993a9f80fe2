"""What of the input cannot be trained on: told of, and an error where it is too much."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from finetune.batching import NO_CAPTION
from finetune.folder import REJECTS
from imagetext.outputs import write_file
from imagetext.shown import masked, say

NAMED = 3  # rejects in an error


class Tolerance(Protocol):
    """A configuration that says how many samples may be unusable."""

    @property
    def max_error_rate(self) -> float:
        """The greatest share."""
        ...


def check_rejects(rejects: Sequence[tuple[str, str]], usable: int, config: Tolerance) -> None:
    """Raises ValueError where more of the captioned pictures are broken or missing than `--max-error-rate` allows.

    rejects: without those that had failed before the input was written, which say nothing of how it lies here.
    """
    failed = [f"{key}: {error}" for key, error in rejects if error != NO_CAPTION]
    rate = len(failed) / (len(failed) + usable)
    if rate > config.max_error_rate:
        lines = [
            f"{len(failed):,} of {len(failed) + usable:,} samples cannot be used, {rate:.1%}, and --max-error-rate allows "
            f"{config.max_error_rate:.1%}:",
            *failed[:NAMED],
        ]
        if len(failed) > NAMED:
            lines.append(f"and {len(failed) - NAMED:,} more")
        raise ValueError("\n  ".join(lines))


def report_rejects(rejects: Sequence[tuple[str, str]], failed_before: Sequence[tuple[str, str]], output: Path) -> None:
    """Names the samples that were left out, each with its reason; of those that the input has as failures, says how many."""
    if rejects or failed_before:
        lines = [json.dumps({"key": key, "error": masked(error)}) + "\n" for key, error in [*rejects, *failed_before]]
        write_file(output / REJECTS, "".join(lines))
    if rejects:
        say(f"{len(rejects):,} samples left out, see {output / REJECTS}")
    if failed_before:
        say(
            f"{len(failed_before):,} rows of the input had failed before, in the run that wrote it, and are passed over, see "
            f"{output / REJECTS}"
        )
