"""The checkpoints of a run. Each is written whole or not at all, and the last two are kept.

When a run resumes from a checkpoint, its logs are cut to that step. A finished run keeps its last checkpoint, so that
it can be continued with more samples.
"""

import json
import logging
import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from captioners.weights import non_finite
from imagetext.fields import json_object
from imagetext.lock import check_lock
from imagetext.outputs import UNFINISHED, whole_file, write_file

logger = logging.getLogger(__name__)

LOG, VALIDATION_LOG = "train.jsonl", "validation.jsonl"
FOLDER = "checkpoints"
CHECKPOINTS_KEPT = 2
BEST = "best"  # folder of the captioner with the lowest validation caption loss so far


class Checkpoints:
    """The checkpoints in a run's folder. Each of the `parts` of a state has state_dict and load_state_dict."""

    def __init__(self, output: Path):
        self.output, self.folder = output, output / FOLDER

    def paths(self) -> list[Path]:
        """Return the paths of all checkpoints, the latest last."""
        return sorted(self.folder.glob("*.pt"))

    def save(self, step: int, parts: Mapping[str, Any], *, write: bool = True) -> None:
        """Write the state after a step, then remove all but the last two checkpoints.

        All processes must call this, because together they gather the state; only those with `write` write it.
        Raises ValueError for weights that are not finite, before anything is written, and OSError if the disk is full.
        """
        state: dict[str, Any] = {"step": step, **{name: part.state_dict() for name, part in parts.items()}}
        if not write:
            return
        if names := non_finite(state["model"]):
            raise ValueError(
                f"after step {step}, some weights are not finite, such as {names[0]}, so no checkpoint is written; "
                "lower --learning-rate or raise --warmup, and start again"
            )
        check_lock(self.output)
        with (
            explain_write_errors(self.folder),
            whole_file(self.folder / f"{step:09}.pt") as temporary,
            open(temporary, "wb") as file,
        ):
            torch.save(state, file)
        self.keep(CHECKPOINTS_KEPT)

    def keep(self, count: int) -> None:
        """Remove all but the last `count` checkpoints, and unfinished ones."""
        for path in [*self.paths()[:-count], *self.folder.glob(f"*{UNFINISHED}")]:
            path.unlink()

    def load(self, parts: Mapping[str, Any]) -> int:
        """Load the last intact checkpoint into `parts`, and return its step; 0 if there is no checkpoint.

        Warns of each damaged checkpoint and tries the one before. Raises ValueError if all of them are damaged.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                state = _read(path)
            except (
                OSError,
                EOFError,
                RuntimeError,
                ValueError,
                KeyError,
                pickle.UnpicklingError,
                zipfile.BadZipFile,
            ) as error:
                logger.warning("%s: cannot be read, so the checkpoint before it is used: %s", path, error)
                continue
            for name, part in parts.items():
                part.load_state_dict(state[name])
            return state["step"]
        if paths:
            raise ValueError(
                f"{self.folder}: none of its {len(paths)} checkpoints can be read; --overwrite starts anew"
            )
        return 0

    def last_validation(self) -> dict[str, Any]:
        """Return the last row of the validation log, {} if there is none."""
        path = self.output / VALIDATION_LOG
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return json.loads(lines[-1]) if lines else {}

    def cut_logs(self, step: int) -> None:
        """Remove the rows of later steps from the logs, and lines that are no rows, as a crash may leave them."""
        for path in filter(Path.exists, (self.output / LOG, self.output / VALIDATION_LOG)):
            lines = path.read_bytes().splitlines(keepends=True)
            write_file(path, b"".join(line for line in lines if line.endswith(b"\n") and _step_of(line) <= step))


def _step_of(line: bytes) -> float:
    """Return the step of a row of a log, or infinity if the line is no row."""
    try:
        return int(json_object(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return math.inf


def _read(path: Path) -> dict[str, Any]:
    """Return the state in a checkpoint, mapped into memory.

    Raises one of many errors if the file is damaged, and ValueError if its weights are not finite.
    """
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} in it is damaged")
    state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if names := non_finite(state["model"]):
        raise ValueError(f"its weights are not finite: {names[0]}")
    return state


@contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Within this context, turn libraries' errors for a full disk into an OSError with folder and reason."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(reason, OSError | SafetensorError):
            raise
        raise OSError(f"{folder}: cannot be written: {reason}") from error
