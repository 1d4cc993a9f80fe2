"""A small set by our own commands, with all that goes wrong in a large one, and what its shards hold, read without our code.

The source has pictures that are cut, that are none, that are missing or no JPEG, and records without text. `capsmith generate`
captions it twice: with a column that takes all captions, beside one whose gate refuses most, then with a third column whose gate
refuses every caption of some pictures. `capsmith reinforce` then adds views and the embeddings of two tiny teachers, and
`capsmith join` puts negatives and tags beside the captions, which no trainer may take for them.
"""

import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import open_clip
import torch
import yaml
from safetensors.torch import save_file

from capsmith import main
from imagetext.sample import decode_image
from imagetext.sources import read_samples

RUNS = Path("runs/compat")
COLUMNS = ("syn_text_plain", "syn_text_strict", "syn_text_warm")
OTHERS = ("neg_text_other", "tags_other")  # columns that are no captions
SHARDS, PICTURES = 3, 24  # pictures in each shard
BROKEN, CUT, MISSING, NO_TEXT, PNG = range(10, 15)  # places in a shard of what is out of the ordinary
SIDE, VIEWS = 64, 4
DIMENSIONS = {"tiny_a": 32, "tiny_b": 48}  # of the teachers' embeddings
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def model_config(dimension: int) -> dict:
    """A CLIP model small enough for a CPU, with CLIP's own vocabulary."""
    vision = {"image_size": SIDE, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    return {"embed_dim": dimension, "vision_cfg": vision, "text_cfg": text}


@dataclass(frozen=True)
class Set:
    """The shards of one set, as the standard library reads them."""

    folder: Path

    @property
    def shards(self) -> list[Path]:
        return sorted(self.folder.glob("*.tar"))

    @cached_property
    def records(self) -> dict[str, dict[str, bytes]]:
        """The files of each record by its key, in order."""
        records: dict[str, dict[str, bytes]] = {}
        for shard in self.shards:
            with tarfile.open(shard) as archive:
                for member in archive:
                    key, suffix = member.name.split(".", 1)
                    records.setdefault(key, {})[suffix] = archive.extractfile(member).read()
        return records

    @cached_property
    def failed(self) -> dict[str, str]:
        """Why, by key, records failed."""
        reasons = {key: json.loads(files["json"])["error"] for key, files in self.records.items()}
        return {key: reason for key, reason in reasons.items() if reason}

    @cached_property
    def pairs(self) -> dict[str, str]:
        """The text, by key, of records with a picture and one: those that CLIP's trainers take."""
        return {key: files["txt"].decode() for key, files in self.records.items() if {"jpg", "txt"} <= files.keys()}


def write_source(folder: Path) -> str:
    """Tar shards of drawn scenes, and its SPEC."""
    folder.mkdir(parents=True)
    samples = [
        sample
        for shard in read_samples(f"scenes:train,n={SHARDS * PICTURES},level=2,captions=alt")
        for sample in shard
    ]
    for number in range(SHARDS):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as archive:
            for place, sample in enumerate(samples[number * PICTURES : (number + 1) * PICTURES]):
                picture = {
                    BROKEN: b"<html>not found</html>",
                    CUT: sample.image[: len(sample.image) // 2],
                    MISSING: None,
                    PNG: as_png(sample.image),
                }.get(place, sample.image)
                files = {
                    "jpg": picture,
                    "txt": None if place == NO_TEXT else sample.captions[0].encode(),
                    "url.txt": f"https://example.org/{sample.key}.jpg".encode(),
                    "json": json.dumps({"uid": f"uid {sample.key}", "licence": "CC0"}).encode(),
                }
                for suffix, data in files.items():
                    if data is not None:
                        member = tarfile.TarInfo(f"{sample.key}.{suffix}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
    return str(folder / "*.tar")


def as_png(picture: bytes) -> bytes:
    """The picture in PNG, half transparent."""
    file = io.BytesIO()
    image = decode_image(picture)
    image.putalpha(128)
    image.save(file, "PNG")
    return file.getvalue()


def write_teachers(folder: Path) -> list[str]:
    """Two CLIP models of random weights in open_clip's layout, as names of teachers."""
    for seed, (name, dimension) in enumerate(DIMENSIONS.items()):
        (folder / name).mkdir(parents=True)
        config = model_config(dimension)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            weights = open_clip.CLIP(**config).state_dict()
        save_file(
            {key: tensor.contiguous() for key, tensor in weights.items()},
            folder / name / "open_clip_model.safetensors",
        )
        preprocess = {"size": SIDE, "mean": MEAN, "std": STD}
        (folder / name / "open_clip_config.json").write_text(
            json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
        )
    return [str(folder / name) for name in DIMENSIONS]


def run(*argv: str) -> None:
    """One of our commands; RuntimeError where it fails."""
    print("capsmith", *argv, flush=True)
    if code := main(list(argv)):
        raise RuntimeError(f"capsmith {argv[0]}: exit code {code}")


def make_captioned(folder: Path, *formats: str) -> Path:
    """Captions by two runs of `capsmith generate`, the second once for each format, in a folder of its name.

    Returns: the folder of the webdataset shards.
    """
    shutil.rmtree(folder, ignore_errors=True)
    source = write_source(folder / "source")
    columns = [{"column": COLUMNS[0]}, {"column": COLUMNS[1], "min_similarity": 0.6, "redraws": 0, "seed": 2}]
    (folder / "columns.yaml").write_text(yaml.safe_dump({"columns": columns}))
    usual = (
        "--model",
        "coca_tiny",
        "--num-captions",
        "3",
        "--device",
        "cpu",
        "--num-workers",
        "0",
        "--max-error-rate",
        "1",
    )
    run(
        "generate",
        "--input",
        source,
        "--output",
        str(folder / "once"),
        "--config",
        str(folder / "columns.yaml"),
        *usual,
    )
    for format in ("webdataset", *formats):
        run(
            "generate",
            "--input",
            str(folder / "once" / "*.tar"),
            "--output",
            str(folder / format),
            "--column",
            COLUMNS[2],
            "--temperature",
            "1.2",
            "--seed",
            "1",
            "--min-similarity",
            "0.5",
            "--redraws",
            "0",
            "--format",
            format,
            *usual,
        )
    return folder / "webdataset"


def with_others(folder: Path, records: Set) -> Path:
    """The set with a negative and two tags for each good record but every fifth, from `capsmith join`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    good = [key for key in records.records if key not in records.failed]
    rows = [
        {
            "uid": json.loads(records.records[key]["json"])["uid"],
            OTHERS[0]: [f"not what {key} shows"],
            OTHERS[1]: ["scene", key],
        }
        for number, key in enumerate(good)
        if number % 5
    ]
    apart = folder / "apart.jsonl"
    apart.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shards = str(records.folder / "*.tar")
    run("join", "--input", shards, "--captions", str(apart), "--output", str(folder / "joined"))
    return folder / "joined"


def make_reinforced(folder: Path, captioned: Path, teachers: Sequence[str], *options: str) -> Path:
    """Views and embeddings for the captioned records, from `capsmith reinforce`."""
    shutil.rmtree(folder, ignore_errors=True)
    named = [word for name in teachers for word in ("--teacher", name)]
    run(
        "reinforce",
        "--input",
        str(captioned / "*.tar"),
        "--output",
        str(folder),
        *named,
        "--views",
        str(VIEWS),
        *options,
        "--device",
        "cpu",
        "--num-workers",
        "0",
        "--max-error-rate",
        "1",
    )
    return folder
