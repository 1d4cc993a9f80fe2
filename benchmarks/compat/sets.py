"""Small sets that our own commands make, with all faults that occur in large sets; their shards are read without our
code.

The source has pictures that are truncated, missing, not pictures at all, or not JPEG, and a record without text.
`capsmith generate` captions it twice: first with a column that accepts all captions and one whose gate refuses most of
them, then with a third column whose gate refuses every caption of some pictures. `capsmith reinforce` adds views and
the embeddings of two tiny teachers. `capsmith join` adds negatives and tags, which no trainer may take for captions.
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
OTHERS = ("neg_text_other", "tags_other")  # columns that are not captions
SHARDS, PICTURES = 3, 24  # number of shards, pictures in each shard
BROKEN, CUT, MISSING, NO_TEXT, PNG = range(10, 15)  # positions of the unusual records within a shard
SIDE, VIEWS = 64, 4
DIMENSIONS = {"tiny_a": 32, "tiny_b": 48}  # of the teachers' embeddings
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD


def model_config(dimension: int) -> dict:
    """The configuration of a CLIP model that is small enough for a CPU, with CLIP's own vocabulary."""
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
        """The files of each record by suffix; records by key, in their order in the shards."""
        records: dict[str, dict[str, bytes]] = {}
        for shard in self.shards:
            with tarfile.open(shard) as archive:
                for member in archive:
                    key, suffix = member.name.split(".", 1)
                    records.setdefault(key, {})[suffix] = archive.extractfile(member).read()
        return records

    @cached_property
    def failed(self) -> dict[str, str]:
        """The reasons of the failed records, by key."""
        reasons = {key: json.loads(files["json"])["error"] for key, files in self.records.items()}
        return {key: reason for key, reason in reasons.items() if reason}

    @cached_property
    def pairs(self) -> dict[str, str]:
        """The texts, by key, of the records that have both a picture and a text: these are the ones trainers of CLIP
        take.
        """
        return {key: files["txt"].decode() for key, files in self.records.items() if {"jpg", "txt"} <= files.keys()}


def write_source(folder: Path) -> str:
    """Write tar shards of drawn scenes; return their SPEC."""
    folder.mkdir(parents=True)
    samples = [
        sample
        for shard in read_samples(f"scenes:train,n={SHARDS * PICTURES},level=2,captions=alt")
        for sample in shard
    ]
    for number in range(SHARDS):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as archive:
            for position, sample in enumerate(samples[number * PICTURES : (number + 1) * PICTURES]):
                picture = {
                    BROKEN: b"<html>not found</html>",
                    CUT: sample.image[: len(sample.image) // 2],
                    MISSING: None,
                    PNG: as_png(sample.image),
                }.get(position, sample.image)
                files = {
                    "jpg": picture,
                    "txt": None if position == NO_TEXT else sample.captions[0].encode(),
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
    """The picture as a half-transparent PNG."""
    file = io.BytesIO()
    image = decode_image(picture)
    image.putalpha(128)
    image.save(file, "PNG")
    return file.getvalue()


def write_teachers(folder: Path) -> list[str]:
    """Write two CLIP models with random weights in open_clip's layout; return the names by which `reinforce` takes
    them.
    """
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
    """Run one of our commands; RuntimeError if it fails."""
    print("capsmith", *argv, flush=True)
    if code := main(list(argv)):
        raise RuntimeError(f"capsmith {argv[0]}: exit code {code}")


def make_captioned(folder: Path, *formats: str) -> Path:
    """Caption the source by two runs of `capsmith generate`; return the folder of the webdataset shards.

    The second run is repeated for each format, and writes to a folder with the name of the format.
    """
    shutil.rmtree(folder, ignore_errors=True)
    source = write_source(folder / "source")
    columns = [{"column": COLUMNS[0]}, {"column": COLUMNS[1], "min_similarity": 0.6, "redraws": 0, "seed": 2}]
    (folder / "columns.yaml").write_text(yaml.safe_dump({"columns": columns}))
    common = (
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
        *common,
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
            *common,
        )
    return folder / "webdataset"


def with_others(folder: Path, records: Set) -> Path:
    """Add a negative and two tags to four in five of the good records by `capsmith join`; return the joined set's
    folder.
    """
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
    table = folder / "others.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shards = str(records.folder / "*.tar")
    run("join", "--input", shards, "--captions", str(table), "--output", str(folder / "joined"))
    return folder / "joined"


def make_reinforced(folder: Path, captioned: Path, teachers: Sequence[str], *, options: Sequence[str]) -> Path:
    """Add views and embeddings to the captioned records by `capsmith reinforce`; return the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    teacher_flags = [word for name in teachers for word in ("--teacher", name)]
    run(
        "reinforce",
        "--input",
        str(captioned / "*.tar"),
        "--output",
        str(folder),
        *teacher_flags,
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
