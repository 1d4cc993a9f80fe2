"""A run's folder: what may begin in it, when it begins, and an earlier run that stays until the new one has a checkpoint.

Nothing is written before everything was read. What `--overwrite` replaces then lies in `.before`: the earlier run is put back
where the new one ends without a checkpoint, by the next command if need be.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState

from finetune.checkpoints import BEST, LOG, VALIDATION_LOG, Checkpoints, explain_write_errors
from finetune.checkpoints import FOLDER as CHECKPOINTS
from finetune.config import Config, TrainingConfig
from finetune.page import PAGE
from imagetext.cards import CARD
from imagetext.lock import LOCK, LockLost, check_lock
from imagetext.outputs import UNFINISHED, whole_files, write_file
from imagetext.shown import masked_values

REJECTS, TRACKED, BEFORE = "rejects.jsonl", "capsmith", ".before"
IMAGE_CACHE = "image_cache"  # folder of what a frozen image tower says of each picture, until the run ends
DONE = ("open_clip_config.json", "adapter_config.json", "config.json")  # what a finished model has, written last
VERSION = ".".join(version("capsmith").split(".")[:2])  # what one began, another does not go on with
# how a run is carried out, not what comes of it
CARRIED_OUT = {
    "output",
    "overwrite",
    "num_workers",
    "device",
    "tf32",
    "checkpoint_every",
    "validate_every",
    "num_processes",
    "shard",
    "device_batch_size",
    "report_to",
    "grad_checkpointing",
    "max_error_rate",
    "push_to_hub",
    "hub_public",
}


def check_output(config: TrainingConfig) -> None:
    """Raises ValueError where the folder holds another run, or is not ours; puts an earlier run back if a start was cut off."""
    output, record = config.output, _record(config)
    if (output / BEFORE).exists() and not Checkpoints(output).paths():
        _put_back(output, record)
    present = {path.name for path in output.iterdir()} if output.exists() else set()
    if record.name not in present and present - {record.name + UNFINISHED, LOCK}:
        raise ValueError(f"--output {output}: the folder is not empty and not a run of capsmith {config.command}")
    if not os.access(next(folder for folder in (output, *output.absolute().parents) if folder.exists()), os.W_OK):
        raise ValueError(f"--output {output}: you have no right to write there")
    if config.overwrite and (output / BEFORE).exists() and _lies_within(config):
        raise ValueError(
            f"--output {output}: the model that it begins with is kept for the unfinished run there; "
            "finish that run, by the same command without --overwrite, or give another --output"
        )
    if record.name in present and not config.overwrite and (Checkpoints(output).paths() or is_finished(output)):
        _check_same(config, read_record(config))


def read_record(config: TrainingConfig) -> dict[str, Any]:
    """What the folder's file says of its run: its settings, what was read of each input, and the files of its model, if done."""
    return json.loads(_record(config).read_text(encoding="utf-8"))


def is_finished(output: Path) -> bool:
    """Whether the folder holds a finished model."""
    return any((output / name).exists() for name in DONE)


def is_done(config: TrainingConfig) -> bool:
    """Whether the folder holds the finished model of this run, of all samples that are asked for."""
    if config.overwrite or not is_finished(config.output):
        return False
    record = read_record(config)
    finished = record.get("finished", 0 if "capsmith" in record else record["samples_seen"])  # 0.1 did not say so
    return finished >= config.samples_seen


@contextmanager
def run_folder(config: TrainingConfig, read: Mapping[str, str], state: PartialState) -> Iterator[None]:
    """The folder made ready for a run that has read all its inputs, of which `read` has a hash each by their paths.

    Where the block ends without a checkpoint, an earlier run is put back. Raises ValueError where inputs are not what they were
    when the run began. Only the main process of those that `state` tells of writes.
    """
    output, record = config.output, _record(config)
    earlier = read_record(config) if record.exists() else {}
    goes_on = not config.overwrite and bool(Checkpoints(output).paths())
    if goes_on:
        _check_inputs(output, earlier.get("read", read), read)
    state.wait_for_everyone()
    if state.is_main_process:
        if earlier and not goes_on:
            _move_aside(output, record, earlier)
        kept = {name: earlier[name] for name in ("files", "finished") if goes_on and name in earlier}
        _write(config, {"capsmith": VERSION, **_settings(config), "read": dict(read), **kept})
    state.wait_for_everyone()
    try:
        yield
    except LockLost:  # what lies there now is another run's
        raise
    except BaseException:
        if state.is_main_process and (output / BEFORE).exists() and not Checkpoints(output).paths():
            _put_back(output, record)
        raise


def remove_earlier_run(config: TrainingConfig) -> None:
    """Removes an earlier run, now that there is a checkpoint; one that holds the model it begins with stays to the end."""
    if not _lies_within(config):
        shutil.rmtree(config.output / BEFORE, ignore_errors=True)


def with_current_paths(config: Config) -> Config:
    """The configuration with the paths of a model that lies in the folder of the earlier run, where that was moved aside."""
    before = config.output.absolute() / BEFORE
    moved = {name: str(before / path) for name, path in _lies_within(config).items() if (before / path).exists()}
    return config.model_copy(update=moved)


def write_finished(config: TrainingConfig, model: Any, *name: str) -> None:
    """Has the finished model saved, whole, its config last, and lets go of all but it, its records and the last checkpoint.

    The record says that the run is finished only after the model has its place: a run that is killed between goes on from its
    last checkpoint, and writes the same model again.
    """
    check_lock(config.output)
    with explain_write_errors(config.output), whole_files(config.output, last=DONE) as staging:
        model.save(staging, *name)
        files = sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file())
        _write(config, read_record(config) | {"files": files})
    _write(config, read_record(config) | {"finished": config.samples_seen})
    remove_leftovers(config)


def remove_leftovers(config: TrainingConfig) -> None:
    """Removes what a finished run needs no more; a run that was killed meanwhile has left some of it."""
    Checkpoints(config.output).keep(1)
    for folder in (BEFORE, IMAGE_CACHE):
        shutil.rmtree(config.output / folder, ignore_errors=True)


# --- what the folder holds -----------------------------------------------------------------------------------------


def _record(config: TrainingConfig) -> Path:
    return config.output / f"{config.command}.json"


def _settings(config: TrainingConfig) -> dict[str, Any]:
    return masked_values(config.model_dump(mode="json", exclude=CARRIED_OUT))


def _write(config: TrainingConfig, record: Mapping[str, Any]) -> None:
    write_file(_record(config), json.dumps(record, indent=2))


def _check_same(config: TrainingConfig, earlier: Mapping[str, Any]) -> None:
    """Raises ValueError where the folder's run has other settings, or another version began it and did not finish it."""
    output, settings, began = config.output, _settings(config), earlier.get("capsmith", "0.1")  # 0.1 did not say so
    unsaid = _settings(type(config).model_construct())  # what it could not say yet, it did not ask for
    if began != VERSION and not is_finished(output):
        raise ValueError(
            f"--output {output}: capsmith {began} began this run; finish it with capsmith {began}, or --overwrite "
            "to start anew"
        )
    more = config.samples_seen > earlier["samples_seen"]
    if other := ", ".join(
        f"{name} was {value!r}, is {settings[name]!r}"
        for name, value in {**unsaid, **earlier}.items()
        if name in settings and settings[name] != value and not (more and name == "samples_seen")
    ):
        raise ValueError(f"--output {output} holds a run with other settings (--overwrite starts anew): {other}")
    if more and not Checkpoints(output).paths():
        raise ValueError(
            f"--output {output}: the finished run has no checkpoint left to go on from; "
            f"--model {output} with another --output trains its model further"
        )


def _check_inputs(output: Path, earlier: Mapping[str, str], now: Mapping[str, str]) -> None:
    if changed := [path for path in {**earlier, **now} if earlier.get(path) != now.get(path)]:
        problem = "these inputs have changed since the run began; give another folder, or --overwrite to start anew:"
        raise ValueError("\n  ".join([f"--output {output}: {problem}", *changed]))


def _lies_within(config: TrainingConfig) -> dict[str, Path]:
    """The settings that name a model in the run's own folder, with its path there."""
    output = config.output.resolve()
    named = {
        name: Path(value).resolve()
        for name in ("model", "base", "student", "pretrained")
        if (value := getattr(config, name, None))
    }
    within = {name: path.relative_to(output) for name, path in named.items() if path.is_relative_to(output)}
    return {
        name: path for name, path in within.items() if (output / path).exists() or (output / BEFORE / path).exists()
    }


# --- an earlier run, aside and back --------------------------------------------------------------------------------


def _own(output: Path, record: Mapping[str, Any]) -> list[str]:
    """The names of all that a run has in its folder, checkpoints first; whatever a record says, none leads out of it."""
    names_there = set(os.listdir(output))
    files = record.get("files") or [path.name for path in output.glob("*.safetensors*")]  # earlier versions noted none
    names = dict.fromkeys(
        [
            CHECKPOINTS,
            *DONE,
            *(Path(file).parts[0] for file in files),
            BEST,
            IMAGE_CACHE,
            TRACKED,
            LOG,
            VALIDATION_LOG,
            REJECTS,
            PAGE,
            CARD,
        ]
    )
    return [name for name in names if name in names_there]


def _move_aside(output: Path, record: Path, earlier: Mapping[str, Any]) -> None:
    """Checkpoints first and the record last, so that a stop on the way can be told and undone."""
    shutil.rmtree(output / BEFORE, ignore_errors=True)
    (output / BEFORE).mkdir()
    for name in [*_own(output, earlier), record.name]:
        os.replace(output / name, output / BEFORE / name)


def _put_back(output: Path, record: Path) -> None:
    """The earlier run back in its place, checkpoints last; where its record was moved, what lies there now is the new run's."""
    before = output / BEFORE
    if (before / record.name).exists():
        for name in _own(output, json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}):
            path = output / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        os.replace(before / record.name, record)
    for path in sorted(before.iterdir(), key=lambda path: path.name == CHECKPOINTS):
        os.replace(path, output / path.name)
    before.rmdir()
