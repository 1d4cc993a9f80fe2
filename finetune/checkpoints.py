"""A run's checkpoints: written whole or not at all, the last two kept, and its logs cut to the one that is resumed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from imagetext.outputs import UNFINISHED, whole_file, write_file

LOG, VALIDATION_LOG = "train.jsonl", "validation.jsonl"
FOLDER, KEPT = "checkpoints", 2
BEST = "best"  # folder of the captioner with the lowest caption loss so far


class Checkpoints:
    """The checkpoints of a run's folder; `parts` of its state have state_dict and load_state_dict."""

    def __init__(self, output: Path):
        self.output, self.folder = output, output / FOLDER

    def save(self, step: int, parts: Mapping[str, Any], *, write: bool = True) -> None:
        """Writes the state after a step, then lets all but the last two go; in processes that do not write, takes part in it."""
        state = {"step": step} | {name: part.state_dict() for name, part in parts.items()}
        if not write:
            return
        with whole_file(self.folder / f"{step:09}.pt") as temporary, open(temporary, "wb") as file:
            torch.save(state, file)
        for old in [*sorted(self.folder.glob("*.pt"))[:-KEPT], *self.folder.glob(f"*{UNFINISHED}")]:
            old.unlink()

    def load(self, parts: Mapping[str, Any]) -> int:
        """Takes up the last checkpoint, if there is one; its step."""
        found = sorted(self.folder.glob("*.pt"))
        if not found:
            return 0
        state = torch.load(found[-1], map_location="cpu", mmap=True, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return state["step"]

    def cut_logs(self, step: int) -> None:
        """Lets go of what the logs tell of later steps; of a line that a stop cut short, too."""
        for path in filter(Path.exists, (self.output / LOG, self.output / VALIDATION_LOG)):
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            write_file(path, "".join(kept))

    def clear(self) -> None:
        """Lets all checkpoints go."""
        for path in self.folder.glob("*"):
            path.unlink()
        if self.folder.exists():
            self.folder.rmdir()
