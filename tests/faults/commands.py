"""The commands that are disturbed: their flags, their small inputs, and stand-ins for the models of some of them."""

import hashlib
import importlib
import io
import json
import shutil
import sys
import tarfile
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from markupsafe import Markup
from moments import reach

import finetune.page
import generate.captions.load
import generate.captions.run
import generate.reinforce.run
import generate.reinforce.stages
import generate.select.page
import generate.sets.card
from captioners.base import Caption, Captioned
from captioners.load import load_captioner
from captioners.resolve import SHIPPED
from generate.reinforce.teachers import Teacher
from imagetext.shards import SUFFIXES
from tests.finetune.sets import write_set, write_student
from tests.generate.conftest import FakeCaptioner, jpeg

PICTURES, NONE = 13, 7  # files in a shard, and the number of the one that is not a picture


class Captioner(FakeCaptioner):
    """A captioner that cuts about every third draw, so that some captions are drawn again."""

    def caption(self, requests, sampling, *, column="", first_index=0, similarity=False, batch_size=None):
        requests = iter(requests)
        while batch := list(islice(requests, batch_size or self.batch_size)):
            reach("batch")
            for key, pixels, _ in batch:
                digest = hashlib.sha256(pixels.numpy().tobytes() + key.encode()).digest()
                yield Captioned(
                    key,
                    tuple(
                        Caption(f"picture {digest.hex()[:6]} no. {i}", -i / 3, digest[i] % 3 == 0)
                        for i in range(first_index, first_index + sampling.num_captions)
                    ),
                )


class Writer(Captioner):
    """A stand-in for a language model, which takes no picture. Some of its answers are refusals or invalid JSON.

    For a few records all answers are.
    """

    looks_at_pictures = needs_picture = False
    takes_instruction = needs_instruction = True

    def caption(self, requests, sampling, *, column="", first_index=0, similarity=False, batch_size=None):
        requests = iter(requests)
        while batch := list(islice(requests, batch_size or self.batch_size)):
            reach("batch")
            for key, pixels, instruction in batch:
                assert pixels is None
                draws = range(first_index, first_index + sampling.num_captions)
                yield Captioned(key, tuple(Caption(self.answer(instruction, i, sampling), None, False) for i in draws))

    def answer(self, instruction, i, sampling):
        digest = hashlib.sha256(f"{instruction} {sampling.seed}".encode()).digest()
        if digest[0] % 5 == 0 or digest[1 + i] % 3 == 0:
            return "I'm sorry, but I can't help with that."
        text = f"what {digest.hex()[:6]} no. {i} is"
        tags = ["tag", f"tag {i}"]
        return json.dumps({"said": text, "false": f"{text} not", "tags": tags}) if sampling.json_schema else text


class RandomTeacher(Teacher):
    """A teacher with random weights; the size of the batch changes its embeddings' last bits, as rounding does."""

    def _encode_views(self, views):
        return self._encode(views.flatten(1) / 255)

    def _encode_texts(self, texts):
        return self._encode(
            torch.stack([torch.bincount(torch.tensor(list(text.encode())), minlength=256) for text in texts]).float()
        )

    def _encode(self, rows):
        reach("batch")
        weights = torch.randn(rows.shape[1], self.dimension, generator=torch.Generator().manual_seed(0))
        return rows @ weights + 1e-5 * len(rows)


def fake_captioner(name, *_, **__):
    if name not in ("fake", "writer"):
        raise ValueError(f"--model {name}: there is no such model")
    return Writer(name) if name == "writer" else Captioner()


def random_teachers(names, *_):
    if names != ["random"]:
        raise ValueError(f"--teacher {names}: there is no such model")
    return [
        RandomTeacher("random", torch.nn.Identity(), None, (16, 16), (0.5,) * 3, (0.5,) * 3, 8, 100.0, None, "0" * 64)
    ]


generate.captions.load.load_captioner, generate.reinforce.run.load_teachers = fake_captioner, random_teachers
generate.reinforce.stages.GROUP = 4  # several groups in a shard
finetune.page._curve = lambda *_, **__: ("", Markup())  # drawing figures takes longer than everything else
generate.select.page._figure = lambda *_: ""
generate.sets.card._spread = lambda *_: []  # measures take long, too


@dataclass(frozen=True)
class Command:
    """A command: its flags without the output, the input that may change, and flags that are a mistake in any run."""

    flags: list[str]
    input: Path
    mistakes: list[list[str]]
    formats: list[str] = field(default_factory=lambda: [""])
    trains: bool = False
    reads: Path | None = None  # for a command that only reads: the set, which is copied to the output folder

    def argv(self, name: str, format: str, output: Path) -> list[str]:
        place = [] if self.reads else ["--output", str(output)]
        return [
            name,
            *([str(output)] if self.reads else self.flags),
            *place,
            *(["--format", format] if format else []),
        ]

    def prepare(self, output: Path) -> None:
        if self.reads:
            shutil.copytree(self.reads, output)


COLUMNS = [
    {"column": "syn_text_fake"},
    {
        "model": "writer",
        "column": "syn_text_said",
        "text_only": True,
        "instruction": "{{ text }}: {{ syn_text_fake }}",
        "num_captions": 1,
        "fallback": ["syn_text_fake", "text"],
    },
    {
        "model": "writer",
        "text_only": True,
        "instruction": "{{ syn_text_said }}",
        "num_captions": 1,
        "answer": "json",
        "fields": {"said": "syn_text_json", "false": "neg_text_json", "tags": "tags_json"},
    },
]  # captions of pictures, these in other words, and JSON from these in columns of several kinds


def make_commands(folder: Path) -> dict[str, Command]:
    """All commands by name. The folder's `captioned` has the output of `generate`, which is the input of other
    commands.
    """
    pictures, reinforced, model = folder / "in", folder / "reinforced", folder / "model"
    make_pictures(pictures)
    write_set(reinforced, count=16)
    make_model(model)
    captioned, columns = folder / "captioned", folder / "columns.json"
    columns.write_text(json.dumps({"columns": COLUMNS}))
    gone, onto = ["--input", str(folder / "gone" / "*.tar")], ["--output", str(pictures)]
    anew = [["--overwrite", *gone], ["--overwrit"], onto, ["--overwrite", *onto]]
    training = ["--num-workers", "0", "--device", "cpu", "--checkpoint-every", "1", "--max-error-rate", "1"]
    shards = ["--max-error-rate", "1", "--device", "cpu", "--num-workers"]
    return {
        "generate": Command(
            [
                "--input",
                f"{pictures}/*.tar",
                "--model",
                "fake",
                "--batch-size",
                "2",
                "--num-captions",
                "3",
                "--redraws",
                "2",
                "--config",
                str(columns),
                *shards,
                "0",
            ],
            pictures,
            [*anew, ["--overwrite", "--model", "fkae"], ["--num-captions", "4"], ["--seed", "1"]],
            list(SUFFIXES),
        ),
        "reinforce": Command(
            [
                "--input",
                f"{captioned}/*.tar",
                "--teacher",
                "random",
                "--batch-size",
                "8",
                "--views",
                "2",
                *shards,
                "0",
            ],
            captioned,
            [*anew, ["--overwrite", "--teacher", "x"], ["--views", "3"]],
            list(SUFFIXES),
        ),
        "join": Command(
            ["--input", f"{pictures}/*.tar", "--captions", str(captioned), "--on", "key"],
            pictures,
            [gone, onto],
            list(SUFFIXES),
        ),
        "select": Command(
            [
                "--input",
                f"{captioned}/*.tar",
                "--where",
                "not truncated",
                "--by",
                "logprob",
                "--top",
                "0.5",
                "--max-per-caption",
                "20",
                "--max-error-rate",
                "1",
            ],
            captioned,
            [*anew, ["--overwrite", "--where", "simlarity > 1"], ["--top", "0.4"]],
            list(SUFFIXES),
        ),
        "verify": Command([], captioned, [], reads=captioned),
        "diversity": Command(["--input", f"{captioned}/*.tar", "--embedder", "none"], captioned, [gone, onto]),
        "finetune": Command(
            [
                "--input",
                f"{pictures}/*.tar",
                "--model",
                str(model),
                "--samples-seen",
                "12",
                "--batch-size",
                "4",
                *training,
                "--eval-input",
                "scenes:test,n=4,size=32",
                "--validate-every",
                "8",
                "--name",
                "mine",
            ],
            pictures,
            [*anew, ["--overwrite", "--model", str(folder / "gone")], ["--seed", "1"]],
            trains=True,
        ),
        "train-student": Command(
            [
                "--input",
                f"{reinforced}/*.tar",
                "--student",
                write_student(folder / "student"),
                "--samples-seen",
                "32",
                "--batch-size",
                "8",
                *training,
                "--logit-scale",
                "30",
                "--logit-scale",
                "20",
            ],
            reinforced,
            [*anew, ["--overwrite", "--student", str(folder / "gone")], ["--learning-rate", "1"]],
            trains=True,
        ),
    }


def make_pictures(folder: Path) -> None:
    """Write three tars with twelve pictures and one file that is not a picture."""
    folder.mkdir()
    for shard in range(3):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for number in range(PICTURES):
                image = b"this is no picture" if number == NONE else jpeg(PICTURES * shard + number)
                for suffix, data in {"jpg": image, "txt": b"the picture %d" % number}.items():
                    member = tarfile.TarInfo(f"{shard}_{number:03d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def make_model(folder: Path) -> None:
    """Write a CoCa with few weights and the tokenizer that capsmith ships."""
    shipped = folder.with_name("shipped")
    shutil.copytree(SHIPPED / "coca_tiny", shipped)
    (shipped / "open_clip_model.safetensors").unlink()
    config = json.loads((shipped / "open_clip_config.json").read_text())
    small = {"width": 32, "layers": 1, "heads": 2, "context_length": 12}
    config["model_cfg"]["embed_dim"] = 16
    config["model_cfg"]["vision_cfg"] |= {
        "image_size": 32,
        "patch_size": 16,
        "width": 32,
        "layers": 1,
        "head_width": 16,
    }
    for part in ("text_cfg", "multimodal_cfg"):
        config["model_cfg"][part] |= small
    (shipped / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    load_captioner(str(shipped), from_scratch=True).save(folder, "small")


def import_all(names: list[str]) -> None:
    """Import the modules that a run has imported, here once instead of in each fork."""
    for name in names:
        if name not in sys.modules and name.split(".")[0] in PRELOADED:
            importlib.import_module(name)


PRELOADED = (
    "accelerate",
    "captioners",
    "diversity",
    "finetune",
    "generate",
    "imagetext",
    "matplotlib",
    "pandas",
    "pyarrow",
    "scipy",
    "sympy",
    "torch",
    "jinja2",
    "rich",
)
