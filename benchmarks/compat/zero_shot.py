"""Compare zero-shot accuracy as CLIP_benchmark and as capsmith compute it: `python -m benchmarks.compat.zero_shot`.

`capsmith train-student` trains a small student on drawn scenes with their captions. The student and the captioner
`coca_tiny` then classify the colour and the shape of 480 scenes that the student has not seen. The scenes are in
shards of CLIP_benchmark's own layout, which `capsmith zero-shot` reads as they are. CLIP_benchmark loads both models
as `local-dir:FOLDER`, in an environment that is made under runs/peers. Exit code 1 means that top-1, top-5 or the mean
per class differs.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from open_clip import SIMPLE_IMAGENET_TEMPLATES

from benchmarks.compat.sets import RUNS, run
from benchmarks.evidence.students import student_folder
from benchmarks.side_by_side import CLIP_PINS, peer_python
from captioners.resolve import SHIPPED
from imagetext.sources import read_records

PINS = (
    "clip-benchmark==1.6.2",
    *CLIP_PINS,
    "webdataset==1.0.2",
    "setuptools<81",
    "numpy<2.2",
)  # CLIP_benchmark does not run with newer versions
TRAIN, TEST = "scenes:train,n=2000,level=1", "scenes:test,n=480,level=1"
SAMPLES_SEEN = 12_800
THEIR_NAMES = {"top1": "acc1", "top5": "acc5", "per_class": "mean_per_class_recall"}  # their names by our names


def write_labelled(folder: Path) -> None:
    """Write scenes of one object, with its colour and shape as label, in the layout of `clip_benchmark_export_wds`."""
    records = list(read_records(TEST))
    (folder / "test").mkdir(parents=True)
    names = [
        f"{shape_facts['colour']} {shape_facts['shape']}"
        for record in records
        for shape_facts in record.meta["scene"]["objects"]
    ]
    classes = sorted(set(names))
    with tarfile.open(folder / "test" / "0.tar", "w") as archive:
        for number, (record, name) in enumerate(zip(records, names, strict=True)):
            for suffix, data in (("jpg", record.image), ("cls", str(classes.index(name)).encode())):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    (folder / "test" / "nshards.txt").write_text("1")
    (folder / "classnames.txt").write_text("\n".join(classes))
    templates = [template("{c}") for template in SIMPLE_IMAGENET_TEMPLATES]
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates))


def train(folder: Path) -> Path:
    """Train the student on the scenes' own captions; return its folder."""
    run("reinforce", "--input", TRAIN, "--output", str(folder / "records"), "--embeddings", "none",
        "--views", "4", "--size", "64", "--crop-area", "0.6", "--num-workers", "0")  # fmt: skip
    run("train-student", "--input", str(folder / "records" / "*.tar"), "--student", str(student_folder(folder)),
        "--output", str(folder / "trained"), "--distill-weight", "0", "--contrastive-weight", "1",
        "--synthetic-weight", "0", "--samples-seen", str(SAMPLES_SEEN), "--batch-size", "64",
        "--num-workers", "0", "--device", "cpu")  # fmt: skip
    return folder / "trained"


def by_clip_benchmark(python: Path, model: Path, folder: Path) -> dict[str, float]:
    """CLIP_benchmark's scores by its own names for them."""
    answer = folder / f"{model.name}.json"
    command = [python, "-m", "clip_benchmark.cli", "eval", "--dataset", "wds/scenes", "--dataset_root", folder / "set",
               "--task", "zeroshot_classification", "--model", f"local-dir:{model}", "--pretrained", "", "--no_amp",
               "--num_workers", "0", "--output", answer]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    offline = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([str(word) for word in command], check=True, env=environment | offline)
    return json.loads(answer.read_text())["metrics"]


def main() -> int:
    folder = (RUNS / "zero_shot").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    write_labelled(folder / "set")
    models = [train(folder), SHIPPED / "coca_tiny"]
    run("zero-shot", "--input", str(folder / "set" / "test" / "*.tar"), "--label", "cls", "--class-names",
        str(folder / "set" / "classnames.txt"), "--templates", "simple", "--output", str(folder / "ours"),
        "--device", "cpu", *(word for model in models for word in ("--model", str(model))))  # fmt: skip
    ours = json.loads((folder / "ours" / "zero_shot.json").read_text())
    python, differing = peer_python("clip-benchmark", PINS), False
    print(
        f"{ours['pictures']} pictures of {len(ours['classes'])} classes; {', '.join(PINS)}, ours {version('capsmith')}"
    )
    for model in models:
        theirs = by_clip_benchmark(python, model, folder)
        for score, name in THEIR_NAMES.items():
            mine = ours["models"][str(model)][score]["mean"]
            differing |= abs(mine - theirs[name]) > 1e-9
            print(f"{model.name}: {score} {mine:.6f}, {name} {theirs[name]:.6f}")
    return int(differing)


if __name__ == "__main__":
    sys.exit(main())
