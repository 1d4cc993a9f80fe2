"""Failed records of a run: their number, and whether another try may succeed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagetext.shown import masked, say

PASSING = ("missing picture file", "the server ")  # parts of reasons that may be gone when the record is tried again


@dataclass
class Failures:
    """Counts the failed records of a shard.

    failed_before: those that had failed already in the input. passing: those whose reason may pass. first_reason: why
    the first one failed, except those that had failed before.
    """

    failed: int = 0
    failed_before: int = 0
    passing: int = 0
    first_reason: str = ""

    def update(self, error: str, reasons: Iterable[str] = (), before: bool = False) -> None:
        """Count a record.

        error: why the record failed, "" where it did not. reasons: why single columns have nothing.
        before: whether it had failed already in the input; then another try would change nothing.
        """
        self.failed += bool(error)
        self.failed_before += before
        self.first_reason = self.first_reason or ("" if before else masked(error))
        new_reasons = [*reasons] if before else [*reasons, error]
        self.passing += any(passing in reason for reason in new_reasons for passing in PASSING)

    def in_marker(self, earlier: Mapping[str, Any] | None) -> dict[str, int | str]:
        """Return what the shard's marker records of the failures.

        Raises: ValueError where more records failed than the shard's `earlier` marker says.
        """
        if earlier and self.failed > earlier["failed"]:
            raise ValueError(
                f"{self.failed:,} records failed, {earlier['failed']:,} in the earlier shard, which stays"
            )
        counts = {"passing": self.passing, "failed_before": self.failed_before}
        return counts | ({"first_reason": self.first_reason} if self.first_reason else {})


def share_failed(markers: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of failed records by the shards' markers.

    Records that had failed already in the input are left out; their number is printed.
    """
    failed_before = sum(marker.get("failed_before", 0) for marker in markers)
    if failed_before:
        say(
            f"{failed_before:,} rows of the input had failed before, in the run that wrote it, and are carried over "
            "as they are"
        )
    rows, failed = (sum(marker[name] for marker in markers) - failed_before for name in ("rows", "failed"))
    return failed / max(rows, 1)


def exit_code_of_run(
    missing: Sequence[str],
    shards: Sequence[str],
    markers: Sequence[Mapping[str, Any]],
    failed_share: float,
    *,
    most: float,
    unit: str,
) -> int:
    """Return the exit code of a run, and print why it is not 0: 1 if shards failed, 3 if too many records did.

    missing: names of the shards that failed. shards: names of all shards. markers: those of the finished shards.
    most: the share of records that may fail. unit: what a record is called.
    """
    if missing:
        say_missing(missing, shards)
        return 1
    if failed_share > most:
        reason = next(filter(None, (marker.get("first_reason") for marker in markers)), None)
        say(
            f"{failed_share:.1%} of the {unit}s failed, more than --max-error-rate {most:.1%}; each of their records "
            f"says why in `error`{f', the first one: {reason}' if reason else ''}"
        )
        return 3
    return 0


def say_missing(missing: Sequence[str], shards: Sequence[str]) -> None:
    """Print which shards of the run failed."""
    say(f"{len(missing)} of {len(shards)} shards failed: {', '.join(missing)}; the same command tries them again")
