"""The official trainer runs on a reinforced set of ours: `python -m benchmarks.compat.trainer --peer-python PATH`.

PATH is the interpreter of an environment with `open_clip` and `open_clip_train` from open_clip's repository at commit
7260a46e7b4bcf518f5200fea06da5bc85aae025, with apple/ml-mobileclip's `open_clip_v2.patch`, `training/dr` and
`mobileclip2`, and with webdataset 0.2.86. None of this is on PyPI in this form, so prepare the environment by hand.

The trainer takes 20 steps with stored embeddings and views: with npz, with pth.gz, and with npz in a set that also has
columns of negatives and tags, which must never reach it. Then it takes 20 steps with online teachers on captions
alone. Everything that reaches its model and its loss is compared with the set: each text, the pixels of each view, the
embedding of each teacher. Exit code 1 means that they differ. At the end the trainer runs with flags with which it
fails, and the error of each run is printed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.compat.sets import (
    COLUMNS,
    DIMENSIONS,
    RUNS,
    Set,
    make_captioned,
    make_reinforced,
    model_config,
    with_others,
    write_teachers,
)
from benchmarks.compat.trainer_checks import BATCH, STEPS, Problem, check_online, check_stored

SCALES = ("70", "60")  # logit scales of the two teachers


def training_flags(records: Set, name: str, folder: Path) -> list[str]:
    """The flags of the published training scripts, changed for a CPU and a tiny student."""
    shards = f"{records.folder}/{{{records.shards[0].stem}..{records.shards[-1].stem}}}.tar"
    return [
        "--train-data",
        shards,
        "--dataset-type",
        "webdataset",
        "--dataset-resampled",
        "--train-num-samples",
        str(STEPS * BATCH),
        "--batch-size",
        str(BATCH),
        "--epochs",
        "1",
        "--workers",
        "1",
        "--model",
        "tiny_student",
        "--precision",
        "fp32",
        "--warmup",
        "5",
        "--lr",
        "1e-3",
        "--seed",
        "0",
        "--logs",
        str(folder / "logs"),
        "--name",
        name,
        "--dataset-reinforcement",
        "--distill-logit-scale",
        *SCALES,
        "--distill-loss-weights",
        "0.0",
        "1.0",
        "--distill-teacher-dimension",
        *map(str, DIMENSIONS.values()),
        "--distill-average-after-softmax",
    ]


def train(
    python: Path, name: str, flags: Sequence[str], *, texts: Sequence[str], folder: Path
) -> tuple[dict[str, np.ndarray], dict]:
    """Run the trainer; return what its model and loss received (a row for each step) and the versions of its packages.

    Raises: Problem, with the last lines of the trainer's output, if it ends with an error.
    """
    shutil.rmtree(folder / "logs" / name, ignore_errors=True)
    (folder / "texts.json").write_text(json.dumps(texts))
    trace = folder / f"{name}.npz"
    trace.unlink(missing_ok=True)
    options = {
        "configs": [str(path) for path in sorted((folder / "configs").glob("*.json"))],
        "argv": [*flags],
        "texts": str(folder / "texts.json"),
        "trace": str(trace),
    }
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), str(Path(__file__).with_name("trainer_peer.py")), json.dumps(options)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    (folder / f"{name}.log").write_text(done.stdout)
    lines = done.stdout.splitlines()
    if done.returncode:
        raise Problem(next((line for line in reversed(lines) if "Error" in line), "\n".join(lines[-3:])))
    versions = next(json.loads(line) for line in reversed(lines) if line.startswith("{"))
    with np.load(trace, allow_pickle=False) as arrays:
        return dict(arrays), versions


def set_up(folder: Path) -> tuple[Set, list[str], list[str]]:
    """Make the captioned set and the teachers; return the set, all its texts, and the teachers' folders.

    The model configurations that the trainer needs are written to the folder `configs`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "configs").mkdir(parents=True)
    for name, dimension in {"tiny_student": 64, **DIMENSIONS}.items():
        (folder / "configs" / f"{name}.json").write_text(json.dumps(model_config(dimension)))
    captioned = Set(make_captioned(folder / "captioned"))
    synthetic = {
        text
        for files in captioned.records.values()
        for captions in json.loads(files["syn.json"]).values()
        for text in captions
    }
    return captioned, sorted(synthetic | set(captioned.pairs.values())), write_teachers(folder / "teachers")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, required=True, help="interpreter of the trainer's environment")
    python = parser.parse_args().peer_python
    folder = (RUNS / "trainer").resolve()
    captioned, texts, teachers = set_up(folder)
    stored = {
        kind: Set(make_reinforced(folder / kind, captioned.folder, teachers, options=["--embeddings", kind]))
        for kind in ("npz", "pth.gz")
    }
    beside = Set(with_others(folder / "beside", stored["npz"]))
    for key, files in stored["npz"].records.items():  # negatives must not change what the trainer reads
        for name in ("jpg", "txt", "syn.json", "paug.json", "npz"):
            if files.get(name) != beside.records[key].get(name):
                raise RuntimeError(f"{key}: negatives change {name}")
    partly = Set(make_reinforced(folder / "partly", captioned.folder, teachers, options=["--columns", COLUMNS[0]]))
    reasons = Counter(reason.split(":")[0] for reason in captioned.failed.values())
    print(
        f"{len(captioned.records)} records, {len(captioned.failed)} failed: {dict(reasons)}; "
        f"{len(captioned.pairs)} with picture and text"
    )
    config = ["--dataset-reinforcement-config", str(stored["npz"].folder / "config.json")]
    weights = [f"{teacher}/open_clip_model.safetensors" for teacher in teachers]
    online = [*config, "--distill-model", ",".join(DIMENSIONS), "--distill-pretrained", ",".join(weights)]
    only_first = ["--dataset-reinforcement-syn-text-key-regex", f"^{COLUMNS[0]}$"]
    code = 0
    for name, records, flags in (
        *((kind, records, config) for kind, records in stored.items()),
        ("npz beside negatives", beside, config),
        ("one column", partly, [*config, *only_first]),
        ("online", captioned, online),
    ):
        try:
            all_flags = [*training_flags(records, name, folder), *flags]
            trace, versions = train(python, name, all_flags, texts=texts, folder=folder)
            if name == "online":
                summary = check_online(records, trace, texts, teachers=teachers)
            else:
                summary = check_stored(records, trace, texts)
        except Problem as problem:
            print(f"{name}: FAILED: {problem}")
            code = 1
            continue
        print(
            f"{name}: {STEPS} steps, {summary.pictures} pictures of {summary.records} records, {summary.views} views, "
            f"synthetic captions {dict(sorted(summary.columns.items()))}, "
            f"embeddings differ by at most {summary.difference:.1e}, "
            f"{trace['loss_class'][0]} {trace['distill_loss'][0]:.3f} -> {trace['distill_loss'][-1]:.3f}\n  {versions}"
        )
    print("flags with which the trainer fails:")
    without_average = [flag for flag in training_flags(stored["npz"], "wrong", folder) if "average" not in flag]
    for description, records, flags in (
        ("one --distill-logit-scale for two teachers", stored["npz"], [*config, "--distill-logit-scale", "100"]),
        ("no --distill-average-after-softmax", stored["npz"], config),
        ("--accum-freq 2", stored["npz"], [*config, "--accum-freq", "2"]),
        ("a column that has no embeddings", partly, config),
        (
            "one online teacher",
            captioned,
            [
                *config,
                "--distill-model",
                "tiny_a",
                "--distill-pretrained",
                weights[0],
                "--distill-logit-scale",
                "70",
                "--distill-teacher-dimension",
                "32",
            ],
        ),
    ):
        usual = without_average if description.startswith("no ") else training_flags(records, "wrong", folder)
        try:
            train(python, "wrong", [*usual, *flags], texts=texts, folder=folder)
            print(f"  {description}: trains")
        except Problem as problem:
            print(f"  {description}: {problem}")
    return code


if __name__ == "__main__":
    sys.exit(main())
