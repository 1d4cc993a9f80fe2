"""`capsmith reinforce`: whole runs, against loops that embed one view and one text at a time."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import functional as pixels_of

import generate.reinforce.stages
from captioners.load import load_captioner
from captioners.ranks import Rank
from generate.reinforce.augment import draw_views
from generate.reinforce.config import ReinforceConfig
from generate.reinforce.run import Reinforcing, run
from generate.reinforce.teachers import Teacher, load_teacher
from generate.runs.manifest import RUN
from generate.sets import verify
from imagetext.cards import CARD
from imagetext.reinforced.embeddings import pack, unpack
from imagetext.reinforced.views import decode_stored, read_views, replay
from imagetext.sources import read_records

ROOT = Path(__file__).parents[2]
BROKEN = b"this is text"
SYN = {"syn_text_a": ["a red circle", "a blue square"], "syn_text_b": ["a red circle", "a green star", "three rings"]}
ORIGINAL = ("an old caption", "another one")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """A folder with a second teacher: coca_tiny's architecture, random weights."""
    folder = tmp_path_factory.mktemp("teacher")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        load_captioner("coca_tiny", from_scratch=True).save(folder, "random_tiny")
    return str(folder)


@pytest.fixture
def make_records(tmp_path, pictures):
    """Write a shard of records with two columns: `make_records("00000", [jpeg, b"no picture", None])`."""

    def make(name, images, syn=SYN, captions=ORIGINAL, **members) -> str:
        path = tmp_path / "in" / f"{name}.tar"
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as archive:
            for number, image in enumerate(images):
                files = {
                    "jpg": image,
                    "txt": captions[0].encode() if captions else None,
                    "syn.json": json.dumps(syn).encode(),
                    "json": json.dumps({"uid": f"{name} {number}", "captions": captions, "error": ""}).encode(),
                    **members,
                }
                for suffix, data in files.items():
                    if data is not None:
                        member = tarfile.TarInfo(f"{name}_{number:03d}.{suffix.replace('__', '.')}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
        return str(path)

    return make


@pytest.fixture
def configure(tmp_path):
    def make(**changes) -> ReinforceConfig:
        return ReinforceConfig(
            **{
                "input": [str(tmp_path / "in" / "*.tar")],
                "teacher": ["coca_tiny"],
                "output": tmp_path / "out",
                **({} if changes.get("convert") else {"views": 3}),
                "batch_size": 4,
                "device": "cpu",
                "num_workers": 0,
                **changes,
            }
        )

    return make


@pytest.fixture
def fake_teachers(monkeypatch):
    """Replace the teachers by fakes without a model; returns the requests that they get."""
    requests = []

    class Fake(Teacher):
        def embed(self, views, texts, batch_size):
            requests.append((len(views), list(texts)))
            return (
                views.float().mean((2, 3)) / 255,
                torch.tensor([[len(text), sum(text.encode()), 1.0] for text in texts]).reshape(-1, 3),
            )

    def load(names, device, dtype):
        return [
            Fake(
                name,
                None,
                None,
                size=(32, 32),
                mean=(0.5,) * 3,
                std=(0.5,) * 3,
                dimension=3,
                logit_scale=100.0,
                logit_bias=None,
                weights_sha256="0" * 64,
                device=device,
            )
            for name in names
        ]

    monkeypatch.setattr("generate.reinforce.run.load_teachers", load)
    return requests


def records(folder, suffix="tar"):
    return list(read_records(str(folder / f"*.{suffix}")))


def members_of(path):
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def one_by_one(name, views, texts):
    """Return a teacher's normalised embeddings (V, E) and (T, E), computed for one picture and text at a time."""
    teacher = load_teacher(name)
    model, tokenizer = teacher.model, teacher.tokenizer
    with torch.no_grad():
        pixels = [pixels_of.to_tensor(view.permute(1, 2, 0).numpy()) for view in views]
        pictures = [pixels_of.normalize(picture, teacher.mean, teacher.std)[None] for picture in pixels]
        of_views = [
            F.normalize(model.encode_image(F.interpolate(picture, teacher.size, mode="bicubic")))
            for picture in pictures
        ]
        of_texts = [F.normalize(model.encode_text(tokenizer([text]))) for text in texts]
    return torch.cat(of_views), torch.cat(of_texts)


# --- what a record holds ---------------------------------------------------------------------------------------------


def test_embeddings_are_those_of_each_view_and_text_by_itself(make_records, pictures, configure, other, tmp_path):
    make_records("00000", pictures(3), url__txt=b"http://x")
    assert run(configure(teacher=["coca_tiny", other], size=64, seed=5, crop_area=0.3)) == 0
    for number, record in enumerate(records(tmp_path / "out")):
        views = read_views(record.members["paug.json"])
        image = decode_stored(record.image)
        assert views == draw_views(5, record.key, 3, size=image.size, side=64, crop_area=0.3)
        pixels = [replay(view, image, 64) for view in views]
        embeddings = unpack(record.members)
        texts = {
            "text_emb": ORIGINAL[:1],
            "captions_emb": ORIGINAL,
            **{f"{name}_emb": column_texts for name, column_texts in SYN.items()},
        }
        assert list(embeddings) == ["image_emb", *texts]
        for name, column_texts in texts.items():
            expected = [one_by_one(teacher, pixels, column_texts) for teacher in ("coca_tiny", other)]
            torch.testing.assert_close(
                embeddings[name], torch.cat([part for _, part in expected], dim=1), atol=2e-6, rtol=1e-4
            )
        torch.testing.assert_close(
            embeddings["image_emb"], torch.cat([part for part, _ in expected], dim=1), atol=2e-6, rtol=1e-4
        )
        assert embeddings["image_emb"].shape == (3, 256) and embeddings["image_emb"].dtype == torch.float32
        assert (
            record.syn_text == {name: tuple(column_texts) for name, column_texts in SYN.items()}
            and record.captions == ORIGINAL
        )
        assert record.members["url.txt"] == b"http://x" and record.image == pictures(3)[number]


def test_views_alone_are_made_of_records_with_originals_and_no_synthetic_captions(
    make_records, pictures, configure, tmp_path, capsys
):
    """This is for students of original texts, with negatives or without; texts to embed must be there."""
    ours = {"uid": "u", "sha256": "", "width": 0, "height": 0, "error": "", "source": "", "caption_scores": {}}
    false = {"captions": ORIGINAL, "caption_fields": {"neg_text_a": ["a false one"]}}
    make_records("00000", [*pictures(1), b"no picture"], syn={}, json=json.dumps(ours | false).encode())
    make_records("00001", pictures(1), syn={})
    make_records("00002", pictures(1), syn={}, captions=[])
    make_records("00003", pictures(1), syn=SYN)
    for format, suffix in (("webdataset", "tar"), ("parquet", "parquet")):
        views = configure(
            teacher=[], embeddings="none", output=tmp_path / format, format=format, max_error_rate=1, size=32
        )
        assert run(views) == 0
        assert "2 of them have no synthetic captions" in capsys.readouterr().out
        records = list(read_records(str(tmp_path / format / f"*.{suffix}")))
        assert [bool(record.error) for record in records] == [False, True, False, True, False]
        assert [list(record.columns) for record in records[:3]] == [["neg_text_a"], ["neg_text_a"], []]
        assert all(("paug.json" in record.members) != bool(record.error) for record in records)
        assert verify.run(verify.VerifyConfig(folder=str(tmp_path / format), most_repeated=1)) == 0
    assert run(configure(output=tmp_path / "embedded", max_error_rate=1)) == 0
    errors = [record.error for record in read_records(str(tmp_path / "embedded" / "*.tar"))]
    assert [error.startswith("no captions in columns like") for error in errors] == [True, True, True, True, False]


def test_a_tar_holds_the_members_that_the_reference_reads(make_records, pictures, configure, fake_teachers, tmp_path):
    """The reference reads `text_emb` of one row, `param_aug` as a list, and arrays without pickles or bf16 tensors."""
    make_records("00000", pictures(1))
    run(configure(teacher=["one", "two"]))
    run(configure(teacher=["one", "two"], embeddings="pth.gz", output=tmp_path / "bf16"))
    run(configure(teacher=[], embeddings="none", output=tmp_path / "none"))
    files = members_of(tmp_path / "out" / "00000.tar")
    assert {name.partition(".")[2] for name in files} == {"jpg", "txt", "syn.json", "json", "paug.json", "npz"}
    arrays = np.load(io.BytesIO(files["00000_000.npz"]), allow_pickle=False)
    assert {name: (arrays[name].shape, arrays[name].dtype) for name in arrays.files} == {
        "image_emb": ((3, 6), np.float32),
        "text_emb": ((1, 6), np.float32),
        "captions_emb": ((2, 6), np.float32),
        "syn_text_a_emb": ((2, 6), np.float32),
        "syn_text_b_emb": ((3, 6), np.float32),
    }
    [params] = [json.loads(data)["param_aug"] for name, data in files.items() if name.endswith("paug.json")]
    assert len(params) == 3 and all(len(crop) == 4 and len(operations) == 2 for crop, operations in params)
    bf16 = members_of(tmp_path / "bf16" / "00000.tar")
    assert bf16.keys() - files.keys() == {"00000_000.pth.gz"}
    tensors = torch.load(gzip.GzipFile(fileobj=io.BytesIO(bf16["00000_000.pth.gz"])), weights_only=True)
    for name in arrays.files:
        assert torch.equal(tensors[name], torch.from_numpy(arrays[name]).to(torch.bfloat16))
    none = members_of(tmp_path / "none" / "00000.tar")
    assert {name for name in files if not name.endswith("npz")} == none.keys()
    large = json.loads(none["00000_000.paug.json"])[
        "param_aug"
    ]  # views without a teacher have 224 pixels, those before had 32
    assert [crop for crop, _ in large] == [crop for crop, _ in params]


def test_config_json_is_a_configuration_of_the_official_trainer(
    make_records, pictures, configure, fake_teachers, tmp_path
):
    make_records("00000", pictures(1))
    run(configure(teacher=["one", "two"], size=48, crop_area=0.5))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    augmentation = config["reinforce"]["image_augmentation"]
    assert augmentation["random_resized_crop"] == {"size": 48, "scale": [0.5, 1.0], "interpolation": "bicubic"}
    assert (
        augmentation["normalize"] == {"mean": [0.5] * 3, "std": [0.5] * 3} and augmentation["rand_augment"]["p"] == 1
    )
    assert [(teacher["name"], teacher["dimension"], teacher["logit_scale"]) for teacher in config["teachers"]] == [
        ("one", 3, 100.0),
        ("two", 3, 100.0),
    ]


def test_columns_are_chosen_and_txt_may_be_synthetic(make_records, pictures, configure, fake_teachers, tmp_path):
    make_records("00000", pictures(1))
    run(configure(columns="syn_text_b", text_from_synthetic=True))
    files = members_of(tmp_path / "out" / "00000.tar")
    embeddings = unpack({"npz": files["00000_000.npz"]})
    assert (
        files["00000_000.txt"] == b"a red circle"
        and "syn_text_a_emb" not in embeddings
        and "syn_text_b_emb" in embeddings
    )
    assert embeddings["text_emb"].tolist() == [[12, sum(b"a red circle"), 1]]
    assert list(json.loads(files["00000_000.syn.json"])) == list(SYN)


def test_a_record_without_original_captions_has_no_row_for_txt(
    make_records, pictures, configure, fake_teachers, tmp_path
):
    make_records("00000", pictures(1), captions=())
    assert run(configure()) == 0
    [record] = records(tmp_path / "out")
    embeddings = unpack(record.members)
    assert record.captions == () and embeddings["text_emb"].shape == (0, 3) and "captions_emb" not in embeddings


@pytest.mark.parametrize("kind", ["npz", "pth.gz", "none"])
def test_a_second_reinforcement_leaves_nothing_of_the_first(
    make_records, pictures, configure, fake_teachers, tmp_path, kind
):
    make_records("00000", pictures(1), paug__json=b'{"param_aug": []}', npz=b"old", pth__gz=b"old")
    run(configure(embeddings=kind, teacher=[] if kind == "none" else ["one"]))
    files = members_of(tmp_path / "out" / "00000.tar")
    assert [name for name in files if name.endswith(("npz", "pth.gz"))] == (
        [] if kind == "none" else [f"00000_000.{kind}"]
    )
    assert b"old" not in files.values() and len(json.loads(files["00000_000.paug.json"])["param_aug"]) == 3
    (row,) = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(row["paug.json"]["param_aug"]) == 3
    assert kind == "none" or len(row[kind]["image_emb"]) == 3


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format, suffix", [("webdataset", "tar"), ("jsonl", "jsonl"), ("parquet", "parquet")])
def test_rows_in_are_rows_out_in_order_with_failures_last(
    make_records, pictures, picture, configure, fake_teachers, tmp_path, capsys, format, suffix
):
    make_records("00000", [BROKEN, *pictures(2), None, *pictures(1, 2)])
    make_records("00001", [*pictures(1, 7)], syn={})
    make_records("00002", [picture(size=(64, 48))[:-300]])
    assert run(configure(format=format, max_error_rate=0.9)) == 0
    written = records(tmp_path / "out", suffix)
    assert [record.key for record in written] == [
        "00000_001",
        "00000_002",
        "00000_004",
        "00000_000",
        "00000_003",
        "00001_000",
        "00002_000",
    ]
    for record in written[:3]:
        assert not record.error and {"paug.json", "npz"} <= record.members.keys()
        image = decode_stored(record.image)
        pixels = [replay(view, image, 32) for view in read_views(record.members["paug.json"])]
        expected = torch.stack(pixels).float().mean((2, 3)) / 255
        torch.testing.assert_close(unpack(record.members)["image_emb"], expected)
    for record, reason in zip(
        written[3:], ("not a picture", "missing picture", "no captions in columns", "does not decode")
    ):
        assert reason in record.error and not {"paug.json", "npz"} & record.members.keys()
    assert run(configure(format=format, output=tmp_path / "strict")) == 3
    assert "57.1% of the records failed" in (printed := " ".join(capsys.readouterr().out.split()))
    assert "says why in `error`, the first one: not a picture" in printed
    markers = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").glob("*.done.json"))]
    assert [(marker["rows"], marker["failed"], marker["captions"]) for marker in markers] == [
        (5, 2, {"syn_text_a": 6, "syn_text_b": 9}),
        (1, 1, {}),
        (1, 1, {}),
    ]


def test_groups_give_each_record_its_own_and_texts_are_embedded_once(
    make_records, pictures, configure, fake_teachers, tmp_path, monkeypatch
):
    """Groups of two, with a cache of one text and with failures, give the same as one group."""
    make_records("00000", [*pictures(2), BROKEN, BROKEN, *pictures(3, 2)])
    run(configure(max_error_rate=1))
    texts = [text for _, new_texts in fake_teachers for text in new_texts]
    assert sorted(texts) == sorted({*ORIGINAL, *SYN["syn_text_a"], *SYN["syn_text_b"]})
    assert [count for count, _ in fake_teachers] == [5 * 3]
    fake_teachers.clear()
    monkeypatch.setattr(generate.reinforce.stages, "GROUP", 2)
    monkeypatch.setattr(generate.reinforce.stages, "CACHED_TEXTS", 1)
    run(configure(max_error_rate=1, output=tmp_path / "two"))
    assert [(count, len(new_texts)) for count, new_texts in fake_teachers] == [(6, 6), (6, 5), (3, 5)]
    assert members_of(tmp_path / "out" / "00000.tar") == members_of(tmp_path / "two" / "00000.tar")


def test_the_bytes_depend_on_neither_workers_nor_other_shards(make_records, pictures, configure, tmp_path, files):
    make_records("00000", pictures(3))
    make_records("00001", [*pictures(2, 3), BROKEN])
    assert run(configure(max_error_rate=0.5)) == 0
    assert run(configure(max_error_rate=0.5, num_workers=2, output=tmp_path / "two")) == 0
    assert (
        run(configure(max_error_rate=0.5, input=[str(tmp_path / "in" / "00001.tar")], output=tmp_path / "alone")) == 0
    )
    assert files(tmp_path / "out") == files(tmp_path / "two")
    alone = {name: data for name, data in files(tmp_path / "alone").items() if name not in (RUN, CARD)}
    assert alone.items() <= files(tmp_path / "out").items()
    assert run(configure(max_error_rate=0.5, seed=1, output=tmp_path / "other")) == 0
    assert files(tmp_path / "out")["00000.tar"] != files(tmp_path / "other")["00000.tar"]


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_killed_anywhere_resumes_to_the_same_bytes(make_records, pictures, tmp_path):
    make_records("00000", [*pictures(1), BROKEN])
    make_records("00001", pictures(1, 3))
    script = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), "reinforce", str(tmp_path / "in" / "*.tar"), str(tmp_path), "webdataset"],
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    [(written, resumed)] = json.loads(done.stdout.splitlines()[-1]).values()
    ends = [f"{name}.{end}" for name in ("00000", "00001") for end in ("tar", "done.json")]
    assert set(written) == {"run.json", "config.json", "README.md", *ends}
    # run.json, config.json; for each shard its records, file and marker; the card: 2 + (2 + 2) + (1 + 2) + 1 steps
    assert resumed == [True] * 10


def test_processes_share_the_shards_of_a_run(make_records, pictures, configure, fake_teachers, tmp_path, files):
    for number in range(3):
        make_records(f"0000{number}", pictures(2, number))
    assert run(configure(output=tmp_path / "alone")) == 0
    begun = threading.Event()
    assert run(configure(), Rank(0, 2, 0), begun.set) == 0 and begun.is_set() and len(records(tmp_path / "out")) == 4
    assert run(configure(), Rank(1, 2, 1)) == 0
    assert files(tmp_path / "out") == files(tmp_path / "alone")


def test_processes_that_the_command_starts_give_the_bytes_of_one(
    make_records, pictures, configure, tmp_path, files, capsys
):
    for number in range(3):
        make_records(f"0000{number}", pictures(2, number))
    assert run(configure(output=tmp_path / "alone", report=True)) == 0
    capsys.readouterr()
    assert run(configure(num_processes=2, report=True)) == 0
    assert f"{tmp_path / 'out'}: 6 records, 0 without views (0.0%), in 3 webdataset shards" in capsys.readouterr().out
    assert files(tmp_path / "out") == files(tmp_path / "alone") and "report.json" in files(tmp_path / "out")


def test_other_settings_or_inputs_are_refused_where_a_run_is(make_records, pictures, configure, fake_teachers):
    make_records("00000", pictures(1))
    assert run(configure()) == 0
    assert run(configure(batch_size=None)) == 0  # as settled
    assert len(fake_teachers) == 1
    for changes, message in (
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"teacher": ["a", "b"]}, "teachers.0.name: 'coca_tiny'"),
        ({"views": 2}, "views: 3"),
        ({"columns": "syn_text_a"}, "embedded_columns"),
        ({"size": 40}, "size"),
        ({"crop_area": 0.5}, "crop_area: 0.08 there, 0.5 now"),
    ):
        with pytest.raises(ValueError, match=message):
            run(configure(**changes))
    assert run(configure(views=2, overwrite=True)) == 0
    make_records("00000", pictures(2))
    with pytest.raises(ValueError, match=r"inputs have changed[^\0]*00000\.tar"):
        run(configure(views=2))


def test_a_run_that_an_earlier_version_began_is_refused_and_stays_as_it_is(
    make_records, pictures, configure, fake_teachers, tmp_path, files
):
    make_records("00000", pictures(1))
    make_records("00001", pictures(1, 1))
    assert run(configure()) == 0
    files_before = files(tmp_path / "out")
    written = json.loads(files_before["run.json"])["fingerprint"]
    assert written.pop("rules") == 5
    (tmp_path / "out" / "run.json").write_text(
        json.dumps({"fingerprint": {**written, "versions": {"capsmith": "0.1"}}})
    )
    (tmp_path / "out" / "00001.done.json").unlink()
    before, requests_before = files(tmp_path / "out"), len(fake_teachers)
    with pytest.raises(
        ValueError,
        match="capsmith 0.1 began this run, with other rules; finish it with capsmith 0.1, or use --overwrite",
    ):
        run(configure())
    assert files(tmp_path / "out") == before and len(fake_teachers) == requests_before
    assert run(configure(overwrite=True)) == 0 and files(tmp_path / "out") == files_before


def test_a_shard_that_fails_is_left_for_the_next_run(
    make_records, pictures, configure, fake_teachers, tmp_path, capsys
):
    make_records("00000", pictures(1))
    good = Path(make_records("00001", pictures(2))).read_bytes()
    (tmp_path / "in" / "00001.tar").write_bytes(good[:-11000])
    assert run(configure()) == 1
    assert "1 of 2 shards failed: 00001" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("00001*"))
    (tmp_path / "in" / "00001.tar").write_bytes(good)
    assert run(configure()) == 0 and len(records(tmp_path / "out")) == 3


def test_out_of_memory_halves_the_batch_and_the_marker_says_so(
    make_records, pictures, configure, fake_teachers, tmp_path, monkeypatch
):
    make_records("00000", pictures(2))
    sizes = []

    def reinforce_samples(*arguments, batch_size, **options):
        sizes.append(batch_size)
        records = generate.reinforce.stages.reinforce_samples(*arguments, batch_size=batch_size, **options)
        for number, record in enumerate(records):
            if batch_size > 1 and number == 1:
                raise torch.OutOfMemoryError("no more")
            yield record

    monkeypatch.setattr("generate.reinforce.run.reinforce_samples", reinforce_samples)
    assert run(configure()) == 0
    assert sizes == [4, 2, 1] and len(records(tmp_path / "out")) == 2
    assert json.loads((tmp_path / "out" / "00000.done.json").read_text())["batch_size"] == 1
    assert json.loads((tmp_path / "out" / "run.json").read_text())["fingerprint"]["batch_size"] == 4


def test_a_teacher_larger_than_the_views_is_refused(make_records, pictures, configure, fake_teachers):
    make_records("00000", pictures(1))
    with pytest.raises(ValueError, match=r"--size: 20 is smaller .*coca_tiny \(32\)"):
        run(configure(size=20))


def test_a_report_comes_once_all_is_done(make_records, pictures, configure, fake_teachers, tmp_path, capsys):
    make_records("00000", pictures(3))
    make_records("00001", pictures(1))
    content = (tmp_path / "in" / "00001.tar").read_bytes()
    (tmp_path / "in" / "00001.tar").write_bytes(content[:1000])
    assert run(configure(report=True)) == 1 and not (tmp_path / "out" / "report.json").exists()
    (tmp_path / "in" / "00001.tar").write_bytes(content)
    assert run(configure(report=True)) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["records"] == 4
    assert run(configure(overwrite=True, views=2)) == 0 and not (tmp_path / "out" / "report.json").exists()


def test_every_problem_of_a_configuration_is_told_at_once(configure):
    with pytest.raises(ValueError) as error:
        configure(teacher=["a", "b", "a"], embeddings="none", convert=True)
    for message in ("not used with --embeddings none", "a given twice", "none leaves nothing to --convert"):
        assert message in str(error.value)
    with pytest.raises(ValueError, match=r"columns\n.*no regular expression: missing \)"):
        configure(columns="(")
    with pytest.raises(ValueError, match="--teacher: required"):
        configure(teacher=[])
    with pytest.raises(ValueError, match="--views: 3: has no effect with --convert"):
        configure(teacher=[], convert=True, views=3)


# --- the older layout ------------------------------------------------------------------------------------------------


def older(embeddings, views, kind="npz"):
    """Return the members of a record of DataCompDR: all texts in `text_emb`, the views as text within the JSON."""
    texts = torch.cat(
        [embeddings["text_emb"], *(rows for name, rows in embeddings.items() if name.startswith("syn_text"))]
    )
    return {
        "paug__json": json.dumps({"param_aug": json.dumps(views)}).encode(),
        kind.replace(".", "__"): pack({"image_emb": embeddings["image_emb"], "text_emb": texts}, kind),
    }


@pytest.mark.parametrize("kind", ["npz", "pth.gz"])
def test_the_older_layout_becomes_the_newer_one(make_records, pictures, configure, fake_teachers, tmp_path, kind):
    make_records("00000", pictures(1), captions=ORIGINAL[:1])
    assert run(configure(embeddings=kind)) == 0
    [record] = records(tmp_path / "out")
    embeddings, views = unpack(record.members), read_views(record.members["paug.json"])
    make_records("00000", pictures(1), captions=ORIGINAL[:1], **older(embeddings, views, kind))
    options = {"teacher": [], "convert": True, "embeddings": kind, "size": 48}
    assert run(configure(**options, output=tmp_path / "new")) == 0
    described = json.loads((tmp_path / "new" / "config.json").read_text())["reinforce"]["image_augmentation"]
    assert described["random_resized_crop"]["size"] == 48  # of the views, which only the user knows
    assert members_of(tmp_path / "new" / "00000.tar") == members_of(tmp_path / "out" / "00000.tar")
    newer = [str(tmp_path / "new" / "*.tar")]
    assert (
        run(configure(**options, input=newer, output=tmp_path / "again")) == 0
    )  # a set in the newer layout stays as it is
    assert (tmp_path / "again" / "00000.tar").read_bytes() == (tmp_path / "new" / "00000.tar").read_bytes()


def test_what_cannot_be_converted_is_a_row_with_its_reason(make_records, pictures, configure, fake_teachers, tmp_path):
    embeddings = {
        name: torch.ones(count, 4)
        for name, count in {"image_emb": 2, "text_emb": 1, "syn_text_a_emb": 2, "syn_text_b_emb": 3}.items()
    }
    views, options = [[[0, 0, 4, 4], []]] * 2, {"teacher": [], "convert": True, "max_error_rate": 1}
    make_records("00000", pictures(1), captions=ORIGINAL[:1], **older(embeddings, views[:1]))
    make_records(
        "00001", pictures(1), captions=ORIGINAL[:1], **older(embeddings | {"text_emb": torch.ones(0, 4)}, views)
    )
    make_records("00002", pictures(1), captions=ORIGINAL[:1])
    make_records("00003", pictures(1), captions=ORIGINAL[:1], **older(embeddings, views) | {"npz": b"damaged"})
    make_records("00004", [BROKEN, None], captions=ORIGINAL[:1], **older(embeddings, views))
    make_records("00005", pictures(1), captions=ORIGINAL[:1], **older(embeddings, [views[0], [[0, 0, 4, 4000], []]]))
    assert run(configure(**options)) == 0
    reasons = [record.error for record in records(tmp_path / "out")]
    for reason, expected in zip(
        reasons,
        (
            "image_emb: 2 rows for 1",
            "text_emb: 0 rows for 1",
            "there is no paug.json",
            "npz: no embeddings",
            "not a picture",
            "missing picture",
            "paug.json: view 1 reaches to pixel 4000 x 4, but the picture has",
        ),
        strict=True,
    ):
        assert expected in reason


@pytest.mark.parametrize(
    "device, settled, dtype_asked, expected",
    [
        ("cuda:0", {}, None, "bf16"),
        ("cpu", {}, None, "fp32"),
        ("cpu", {"dtype": "bf16"}, None, "bf16"),
        ("cuda:0", {}, "fp32", "fp32"),
    ],
)
def test_teachers_compute_in_bf16_on_a_gpu_unless_told_otherwise(device, settled, dtype_asked, expected, monkeypatch):
    """A run continues with the dtype that it began with, on any device."""
    dtypes = []
    monkeypatch.setattr(
        "generate.reinforce.run.load_teachers", lambda names, device, dtype: dtypes.append(dtype) or []
    )
    config = ReinforceConfig(input=["unused"], teacher=["coca_tiny"], output="unused", dtype=dtype_asked)
    assert Reinforcing(config).load(device, settled).fingerprint["dtype"] == expected and dtypes == [expected]
