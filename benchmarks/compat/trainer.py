"""The official trainer of reinforced sets on a set of ours: `python -m benchmarks.compat.trainer --peer-python PATH`.

PATH is an interpreter in whose environment `open_clip` and `open_clip_train` are those of open_clip's repository at commit
7260a46e7b4bcf518f5200fea06da5bc85aae025 with apple/ml-mobileclip's `open_clip_v2.patch`, with its `training/dr` and `mobileclip2`,
and with webdataset 0.2.86. None of it is on PyPI in this form; the interpreter is prepared by hand.

The trainer takes 20 steps with stored embeddings and views (npz, then pth.gz, then npz with columns of negatives and tags beside
the captions, of which none may come to it), and 20 with online teachers and captions alone.
What comes to its model and loss is compared with the set: each text, each view's pixels, each teacher's embedding. Exit code 1:
they differ. Then flags are tried that the trainer does not survive, with the error that each ends in.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.compat.sets import (
    COLUMNS,
    DIMENSIONS,
    MEAN,
    RUNS,
    SIDE,
    STD,
    Set,
    make_captioned,
    make_reinforced,
    model_config,
    with_others,
    write_teachers,
)
from generate.reinforce.teachers import load_teachers
from imagetext.reinforced.embeddings import unpack
from imagetext.reinforced.views import decode_stored, normalise, read_views, replay

STEPS, BATCH = 20, 8
SCALES = ("70", "60")


class Problem(Exception):
    """A difference between the set and what came to the loss."""


def training_flags(records: Set, name: str, folder: Path) -> list[str]:
    """Those of the published scripts, for a CPU and a tiny student."""
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
    python: Path, name: str, flags: Sequence[str], texts: Sequence[str], folder: Path
) -> tuple[dict[str, np.ndarray], dict]:
    """What came to the model and the loss, by name, a row for each step, and the environment's versions.

    Raises: Problem, with the last lines that it printed, where the trainer ends with an error.
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


class Came(NamedTuple):
    """One picture of a batch: as the model and the loss had it."""

    pixels: np.ndarray  # (3, S, S)
    text: int  # number of the text, or -1
    syn_text: int
    image_emb: np.ndarray  # (D,)
    text_emb: np.ndarray
    syn_text_emb: np.ndarray


def pictures(trace: Mapping[str, np.ndarray]) -> list[Came]:
    """All pictures of all steps; the model's texts are the batch's originals, then its synthetic ones."""
    if len(trace["images"]) != STEPS or trace["images"].shape[1] != BATCH:
        raise Problem(f"{len(trace['images'])} steps of {trace['images'].shape[1]} pictures, not {STEPS} of {BATCH}")
    losses = trace["distill_loss"]
    if not np.isfinite(losses).all() or len(losses) != STEPS:
        raise Problem(f"losses {losses}")
    parts = [
        trace["images"],
        trace["texts"][:, :BATCH],
        trace["texts"][:, BATCH:],
        trace["dist_image_features"],
        trace["dist_text_features"],
        trace["dist_syn_text_features"],
    ]
    return [Came(*values) for step in zip(*parts) for values in zip(*step)]


class Seen(NamedTuple):
    """What of a set came: pictures, records and views among them, captions by column, the embeddings' largest difference."""

    pictures: int
    records: int
    views: int
    columns: Counter
    difference: float


def check_stored(records: Set, trace: Mapping[str, np.ndarray], texts: Sequence[str]) -> Seen:
    """That each picture came as one view of one record, with its text, one of its captions, and the embeddings of just these."""
    stored = {key: unpack(records.records[key]) for key in records.pairs}
    whose = {
        row.numpy().tobytes(): (key, view)
        for key, rows in stored.items()
        for view, row in enumerate(rows["image_emb"])
    }
    seen, columns = set(), Counter()
    for came in pictures(trace):
        found = whose.get(came.image_emb.tobytes())
        if found is None:
            raise Problem("an image embedding that is no view's of a good record")
        key, view = found
        files, embeddings = records.records[key], stored[key]
        pixels = replay(read_views(files["paug.json"])[view], decode_stored(files["jpg"]), SIDE)
        if not np.array_equal(came.pixels, normalise(pixels, MEAN, STD).numpy()):
            raise Problem(f"{key}: view {view} has other pixels")
        same_text = came.text >= 0 and same_tokens(texts[came.text], records.pairs[key])
        if not same_text or not np.array_equal(came.text_emb, embeddings["text_emb"][0]):
            raise Problem(f"{key}: not its text, or not its text's embedding")
        columns[column_of(came, key, json.loads(files["syn.json"]), embeddings, texts)] += 1
        seen.add(found)
    return Seen(len(pictures(trace)), len({key for key, _ in seen}), len(seen), columns, 0.0)


def same_tokens(one: str, other: str) -> bool:
    """Whether CLIP's tokenizer, which knows small letters alone, gives two texts the same tokens; a text is known by them."""
    return one.lower() == other.lower()


def column_of(
    came: Came,
    key: str,
    columns: Mapping[str, Sequence[str]],
    embeddings: Mapping[str, torch.Tensor],
    texts: Sequence[str],
) -> str:
    """The column of the record that the synthetic caption came from, whose row is the embedding that came with it."""
    for name, captions in columns.items():
        for caption, row in zip(captions, embeddings[f"{name}_emb"], strict=True):
            if (
                came.syn_text >= 0
                and same_tokens(caption, texts[came.syn_text])
                and np.array_equal(came.syn_text_emb, row.numpy())
            ):
                return name
    raise Problem(f"{key}: not its caption, or not its caption's embedding")


def check_online(records: Set, trace: Mapping[str, np.ndarray], texts: Sequence[str], teachers: Sequence[str]) -> Seen:
    """That each picture came with one record's text and one of its captions, and with the embeddings that our own run of the
    teachers gives of just these."""
    came = pictures(trace)
    loaded = load_teachers(teachers, "cpu", "fp32")
    no_views = torch.zeros(0, 3, SIDE, SIDE, dtype=torch.uint8)
    ours = torch.cat([teacher.embed(no_views, texts, 32)[1] for teacher in loaded], dim=1).numpy()
    images = torch.from_numpy(np.stack([one.pixels for one in came]))
    with torch.inference_mode():
        of_images = torch.cat(
            [teacher.model.encode_image(images, normalize=True) for teacher in loaded], dim=1
        ).numpy()
    by_text: dict[str, list[str]] = {}
    for key, text in records.pairs.items():
        by_text.setdefault(text.lower(), []).append(key)
    seen, columns, difference = set(), Counter(), 0.0
    for one, of_image in zip(came, of_images):
        if min(one.text, one.syn_text) < 0:
            raise Problem("a text that is none of the set's")
        found = [
            (key, name)
            for key in by_text.get(texts[one.text].lower(), ())
            for name, captions in json.loads(records.records[key]["syn.json"]).items()
            if any(same_tokens(texts[one.syn_text], caption) for caption in captions)
        ]
        if not found:
            raise Problem(f"{texts[one.syn_text]!r} is no caption of a record whose text is {texts[one.text]!r}")
        for theirs, mine in (
            (one.text_emb, ours[one.text]),
            (one.syn_text_emb, ours[one.syn_text]),
            (one.image_emb, of_image),
        ):
            difference = max(difference, float(np.abs(theirs - mine).max()))
        seen.add(found[0][0])
        columns[found[0][1]] += 1
    if difference > 1e-5:
        raise Problem(f"the teachers' embeddings differ by {difference:.1e}")
    return Seen(len(came), len(seen), 0, columns, difference)


def set_up(folder: Path) -> tuple[Set, list[str], list[str]]:
    """The captioned set, all its texts, and the teachers' folders; beside them, what the trainer is to know of models."""
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
        kind: Set(make_reinforced(folder / kind, captioned.folder, teachers, "--embeddings", kind))
        for kind in ("npz", "pth.gz")
    }
    beside = Set(with_others(folder / "beside", stored["npz"]))
    for key, files in stored["npz"].records.items():  # nothing that the trainer reads is another
        for name in ("jpg", "txt", "syn.json", "paug.json", "npz"):
            if files.get(name) != beside.records[key].get(name):
                raise RuntimeError(f"{key}: negatives change {name}")
    partly = Set(make_reinforced(folder / "partly", captioned.folder, teachers, "--columns", COLUMNS[0]))
    reasons = Counter(reason.split(":")[0] for reason in captioned.failed.values())
    print(
        f"{len(captioned.records)} records, {len(captioned.failed)} failed: {dict(reasons)}; {len(captioned.pairs)} with "
        "picture and text"
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
            trace, versions = train(python, name, [*training_flags(records, name, folder), *flags], texts, folder)
            seen = (
                check_online(records, trace, texts, teachers)
                if name == "online"
                else check_stored(records, trace, texts)
            )
        except Problem as problem:
            print(f"{name}: FAILED: {problem}")
            code = 1
            continue
        print(
            f"{name}: {STEPS} steps, {seen.pictures} pictures of {seen.records} records, {seen.views} views, synthetic "
            f"captions {dict(sorted(seen.columns.items()))}, embeddings differ by at most {seen.difference:.1e}, "
            f"{trace['loss_class'][0]} {trace['distill_loss'][0]:.3f} -> {trace['distill_loss'][-1]:.3f}\n  {versions}"
        )
    print("flags that end the trainer:")
    without_average = [flag for flag in training_flags(stored["npz"], "wrong", folder) if "average" not in flag]
    for what, records, flags in (
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
        usual = without_average if what.startswith("no ") else training_flags(records, "wrong", folder)
        try:
            train(python, "wrong", [*usual, *flags], texts, folder)
            print(f"  {what}: trains")
        except Problem as problem:
            print(f"  {what}: {problem}")
    return code


if __name__ == "__main__":
    sys.exit(main())
