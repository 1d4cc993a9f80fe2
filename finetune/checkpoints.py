"""A run's checkpoints: written whole or not at all, the last two kept, and its logs cut to the one that is resumed.

The last one of a finished run stays: a run of more samples goes on from it.
"""

import json
import logging
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from imagetext.lock import check_lock
from imagetext.outputs import UNFINISHED, whole_file, write_file

logger = logging.getLogger(__name__)

LOG, VALIDATION_LOG = "train.jsonl", "validation.jsonl"
FOLDER, KEPT = "checkpoints", 2
BEST = "best"  # folder of the captioner with the lowest caption loss so far


class Checkpoints:
    """The checkpoints of a run's folder; `parts` of its state have state_dict and load_state_dict."""

    def __init__(self, output: Path):
        self.output, self.folder = output, output / FOLDER

    def paths(self) -> list[Path]:
        """The checkpoints there are, the last one last."""
        return sorted(self.folder.glob("*.pt"))

    def save(self, step: int, parts: Mapping[str, Any], *, write: bool = True) -> None:
        """Writes the state after a step, then lets all but the last two go; in processes that do not write, takes part in it.

        Raises: ValueError for weights that are not finite, of which nothing is written; OSError where the disk is full.
        """
        state: dict[str, Any] = {"step": step, **{name: part.state_dict() for name, part in parts.items()}}
        if not write:
            return
        if names := non_finite(state["model"]):
            raise ValueError(
                f"after step {step} weights are not finite, {names[0]} among them: lower --learning-rate or raise "
                "--warmup, and begin anew; no checkpoint is written of such weights"
            )
        check_lock(self.output)
        with (
            explain_write_errors(self.folder),
            whole_file(self.folder / f"{step:09}.pt") as temporary,
            open(temporary, "wb") as file,
        ):
            torch.save(state, file)
        self.keep(KEPT)

    def keep(self, last: int) -> None:
        """Lets all but the last ones go."""
        for old in [*self.paths()[:-last], *self.folder.glob(f"*{UNFINISHED}")]:
            old.unlink()

    def load(self, parts: Mapping[str, Any]) -> int:
        """Takes up the last checkpoint that is sound, if there is any; its step.

        Warns of each that is not, and takes the one before; ValueError where there are some and none is sound.
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
                logger.warning("%s cannot be read, the checkpoint before it is taken: %s", path, error)
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
        """The last row of the validations' log; {} where there is none."""
        path = self.output / VALIDATION_LOG
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return json.loads(lines[-1]) if lines else {}

    def cut_logs(self, step: int) -> None:
        """Lets go of what the logs tell of later steps; of a line that a stop cut short, too."""
        for path in filter(Path.exists, (self.output / LOG, self.output / VALIDATION_LOG)):
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_file(path, "".join(kept))


def _read(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, mapped into memory; one of many errors where it is not whole, or its weights are not finite."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} in it is damaged")
    state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if names := non_finite(state["model"]):
        raise ValueError(f"its weights are not finite: {names[0]}")
    return state


def non_finite(weights: Mapping[str, Any]) -> list[str]:
    """The names of the tensors that hold a number that is not finite."""
    return [
        name
        for name, weight in weights.items()
        if isinstance(weight, Tensor) and weight.is_floating_point() and not bool(torch.isfinite(weight).all())
    ]


@contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Raises OSError with folder and reason where weights cannot be written: libraries say other things of a full disk."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(reason, OSError | SafetensorError):
            raise
        raise OSError(f"{folder}: cannot be written: {reason}") from error
