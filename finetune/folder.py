"""The folder of a run: whether a run may start in it, and what becomes of an earlier run.

Nothing is written before all input has been read. With `--overwrite`, an earlier run is moved to the subfolder
`.before` and stays there until the new run has a checkpoint. If the new run ends without one, the earlier run is put
back, by the next command if need be.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from pydantic import BaseModel, ValidationError

from finetune.checkpoints import BEST, LOG, VALIDATION_LOG, Checkpoints, explain_write_errors
from finetune.checkpoints import FOLDER as CHECKPOINTS
from finetune.config import Config, TrainingConfig
from finetune.page import PAGE
from imagetext.cards import CARD
from imagetext.fields import json_object
from imagetext.lock import LOCK, LockLost, check_lock
from imagetext.outputs import UNFINISHED, whole_files, write_file
from imagetext.shown import masked_values

REJECTS, TRACKED, BEFORE = "rejects.jsonl", "capsmith", ".before"
IMAGE_CACHE = "image_cache"  # folder with the frozen image tower's outputs, removed when the run ends
RECORD_INDEX = "record_index"  # folder with what was found in a student's tars, removed when the run ends
DONE = ("open_clip_config.json", "adapter_config.json", "config.json")  # a finished model has one; it is written last
VERSION = ".".join(version("capsmith").split(".")[:2])  # only the same version continues an unfinished run
# Settings of how a run is carried out. They do not change its result, so a resumed run may have others.
EXECUTION_SETTINGS = {
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
# Settings that a run chooses where they are None, and then keeps; with what runs did before there was such a setting.
SETTLED = {"products": "onednn"}


class _Record(BaseModel):
    """What is used of a run's record beside the settings that are compared. Early versions did not write all of it."""

    samples_seen: int
    finished: int = 0
    read: dict[str, str] = {}
    files: list[str] = []
    products: Literal["torch", "onednn"] | None = None


def check_output(config: TrainingConfig) -> None:
    """Check that a run may start or resume in the folder; raises ValueError if not.

    It may not if the folder holds another run or foreign files, or cannot be written. An earlier run that was moved
    aside for a run without a checkpoint is put back first.
    """
    output, record_path = config.output, _record_path(config)
    if (output / BEFORE).exists() and not Checkpoints(output).paths():
        _put_back(output, record_path)
    present = {path.name for path in output.iterdir()} if output.exists() else set()
    if record_path.name not in present and present - {record_path.name + UNFINISHED, LOCK}:
        raise ValueError(f"--output {output}: the folder is not empty and not a run of capsmith {config.command}")
    nearest_folder = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not os.access(nearest_folder, os.W_OK):
        raise ValueError(f"--output {output}: you have no right to write there")
    if config.overwrite and (output / BEFORE).exists() and _models_within(config):
        raise ValueError(
            f"--output {output}: holds an unfinished run, which still needs the model that you start from; finish "
            "that run with its command, without --overwrite, or give another --output"
        )
    record = read_record(config) if record_path.name in present else {}
    if record and not config.overwrite and (Checkpoints(output).paths() or is_finished(output)):
        _check_same(config, record)


def read_record(config: TrainingConfig) -> dict[str, Any]:
    """Return the record of the folder's run: its settings, input hashes, and, if it is finished, the model's files.

    Raises ValueError if it is damaged.
    """
    return _read_record(_record_path(config))


def is_finished(output: Path) -> bool:
    """Return whether the folder holds a finished model."""
    return any((output / name).exists() for name in DONE)


def is_done(config: TrainingConfig) -> bool:
    """Return whether the folder holds the finished model of this run, trained on all of its samples."""
    if config.overwrite or not is_finished(config.output):
        return False
    record = read_record(config)
    # Version 0.1 did not record how many samples a finished run had.
    samples_finished = record.get("finished", 0 if "capsmith" in record else record["samples_seen"])
    return samples_finished >= config.samples_seen


@contextmanager
def run_folder(
    config: TrainingConfig, input_hashes: Mapping[str, str], state: PartialState, *, base_hash: str = ""
) -> Iterator[None]:
    """Prepare the folder for a run that has read all of its inputs.

    If the block ends without a checkpoint, an earlier run is put back. Only the main process (by `state`) writes.
    input_hashes: a hash of each input, by its path. base_hash: a hash of the model to start from if some of its
    weights are not trained; checkpoints do not hold these. Raises ValueError if the inputs or this model have changed
    since a resumed run began.
    """
    output, record_path = config.output, _record_path(config)
    earlier = read_record(config) if record_path.exists() else {}
    resumes = not config.overwrite and bool(Checkpoints(output).paths())
    if resumes:
        _check_inputs(output, earlier.get("read", input_hashes), input_hashes)
        if earlier.get("base_hash", base_hash) != base_hash:  # early versions did not record it
            raise ValueError(
                f"--output {output}: the weights of the model to start from have changed since the run began, and its "
                "checkpoints hold only the weights that are trained; put the earlier model back, or --overwrite to "
                "start anew"
            )
    state.wait_for_everyone()
    if state.is_main_process:
        if earlier and not resumes:
            _move_aside(output, record_path, earlier)
        finished = {name: earlier[name] for name in ("files", "finished") if resumes and name in earlier}
        read = {"read": dict(input_hashes), "base_hash": base_hash}
        _write_record(config, {"capsmith": VERSION, **_settings(config), **read, **finished})
    state.wait_for_everyone()
    try:
        yield
    except LockLost:  # the folder now belongs to another run
        raise
    except BaseException:
        if state.is_main_process and (output / BEFORE).exists() and not Checkpoints(output).paths():
            _put_back(output, record_path)
        raise


def remove_earlier_run(config: TrainingConfig) -> None:
    """Remove the earlier run that was moved aside, unless it holds the model that this run starts from."""
    if not _models_within(config):
        shutil.rmtree(config.output / BEFORE, ignore_errors=True)


def with_current_paths(config: Config) -> Config:
    """Return the configuration with the present paths of models that were moved aside with an earlier run."""
    before = config.output.absolute() / BEFORE
    moved = {name: str(before / path) for name, path in _models_within(config).items() if (before / path).exists()}
    return config.model_copy(update=moved)


def with_settled(config: Config) -> Config:
    """Return the configuration, completed by what the run that it resumes has settled."""
    if config.overwrite or not Checkpoints(config.output).paths():
        return config
    record = {**SETTLED, **read_record(config)}
    return config.model_copy(update={name: record[name] for name in SETTLED if getattr(config, name) is None})


def write_finished(config: TrainingConfig, model: Any, *name: str) -> None:
    """Save the finished model, with its config last, and remove all but the model, records and the last checkpoint.

    name: the captioner's name, if it is a captioner. The record says that the run is finished only after the model is
    in place. So a run that is killed in between resumes from its last checkpoint and writes the same model again.
    """
    check_lock(config.output)
    with explain_write_errors(config.output), whole_files(config.output, last=DONE) as staging:
        model.save(staging, *name)
        files = sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file())
        _write_record(config, read_record(config) | {"files": files})
    _write_record(config, read_record(config) | {"finished": config.samples_seen})
    remove_leftovers(config)


def remove_leftovers(config: TrainingConfig) -> None:
    """Remove what a finished run no longer needs, also what a killed run has left."""
    Checkpoints(config.output).keep(1)
    for folder in (BEFORE, IMAGE_CACHE, RECORD_INDEX):
        shutil.rmtree(config.output / folder, ignore_errors=True)


# --- the record of a run -------------------------------------------------------------------------------------------


def _record_path(config: TrainingConfig) -> Path:
    return config.output / f"{config.command}.json"


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json_object(path.read_bytes())
        _Record.model_validate(record)
    except ValueError as error:
        detail = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" if detail else error
        raise ValueError(f"{path}: is no record of a run of ours: {reason}; give another --output") from error
    return record


def _settings(config: TrainingConfig) -> dict[str, Any]:
    return masked_values(config.model_dump(mode="json", exclude=EXECUTION_SETTINGS))


def _write_record(config: TrainingConfig, record: Mapping[str, Any]) -> None:
    write_file(_record_path(config), json.dumps(record, indent=2))


def _check_same(config: TrainingConfig, earlier: Mapping[str, Any]) -> None:
    """Raise ValueError if the folder's run has other settings, or another version started it and did not finish it."""
    output, settings = config.output, _settings(config)
    earlier_version = earlier.get("capsmith", "0.1")  # 0.1 did not record its version
    if earlier_version != VERSION and not is_finished(output):
        raise ValueError(
            f"--output {output}: capsmith {earlier_version} began this run; finish it with capsmith "
            f"{earlier_version}, or --overwrite to start anew"
        )
    more = config.samples_seen > earlier["samples_seen"]
    # A setting that the earlier run's version did not have yet was at its default.
    earlier_settings = {**_settings(type(config).model_construct()), **SETTLED, **earlier}
    differences = [
        f"{name} was {value!r}, is {settings[name]!r}"
        for name, value in earlier_settings.items()
        if name in settings
        and settings[name] != value
        and not (more and name == "samples_seen")
        and not (name in SETTLED and settings[name] is None)
    ]
    if differences:
        raise ValueError(
            f"--output {output} holds a run with other settings (--overwrite starts anew): {', '.join(differences)}"
        )
    if more and not Checkpoints(output).paths():
        raise ValueError(
            f"--output {output}: the finished run has no checkpoint left to go on from; "
            f"to train its model further, use --model {output} and another --output"
        )


def _check_inputs(output: Path, earlier: Mapping[str, str], current: Mapping[str, str]) -> None:
    """Raise ValueError that lists the inputs whose hashes differ."""
    changed = [path for path in {**earlier, **current} if earlier.get(path) != current.get(path)]
    if changed:
        problem = "these inputs have changed since the run began; give another folder, or --overwrite to start anew:"
        raise ValueError("\n  ".join([f"--output {output}: {problem}", *changed]))


def _models_within(config: TrainingConfig) -> dict[str, Path]:
    """Return the settings that name a model inside the run's folder, each with the model's path relative to it."""
    output = config.output.resolve()
    models = {}
    for name in ("model", "base", "student", "pretrained"):
        value = getattr(config, name, None)
        path = Path(value).resolve() if value else None
        if path and path.is_relative_to(output):
            relative = path.relative_to(output)
            if (output / relative).exists() or (output / BEFORE / relative).exists():
                models[name] = relative
    return models


# --- moving an earlier run aside and back --------------------------------------------------------------------------


def _names_of_run(output: Path, record: Mapping[str, Any]) -> list[str]:
    """Return the names of all files and folders of a run in its folder, checkpoints first.

    Only names that exist directly in the folder are returned, whatever paths a record lists.
    """
    existing_names = set(os.listdir(output))
    # Early versions did not record the model's files.
    files = record.get("files") or [path.name for path in output.glob("*.safetensors*")]
    names = dict.fromkeys(
        [
            CHECKPOINTS,
            *DONE,
            *(part for file in files for part in Path(file).parts[:1]),
            BEST,
            IMAGE_CACHE,
            RECORD_INDEX,
            TRACKED,
            LOG,
            VALIDATION_LOG,
            REJECTS,
            PAGE,
            CARD,
        ]
    )
    return [name for name in names if name in existing_names]


def _move_aside(output: Path, record_path: Path, earlier: Mapping[str, Any]) -> None:
    """Move an earlier run into `.before`, its record last, so that an interrupted move can be undone."""
    shutil.rmtree(output / BEFORE, ignore_errors=True)
    (output / BEFORE).mkdir()
    for name in [*_names_of_run(output, earlier), record_path.name]:
        os.replace(output / name, output / BEFORE / name)


def _put_back(output: Path, record_path: Path) -> None:
    """Move the earlier run back to its place, checkpoints last.

    If its record had been moved aside, the files in the folder belong to the new run and are removed first.
    """
    before = output / BEFORE
    if (before / record_path.name).exists():
        record = _read_record(record_path) if record_path.exists() else {}
        for name in _names_of_run(output, record):
            path = output / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        os.replace(before / record_path.name, record_path)
    for path in sorted(before.iterdir(), key=lambda path: path.name == CHECKPOINTS):
        os.replace(path, output / path.name)
    before.rmdir()
