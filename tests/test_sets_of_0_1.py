"""Output of capsmith 0.1 stays readable: the sets, the captioner and the reinforced sets in `sets_of_0_1`."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import capsmith

SETS = Path(__file__).parent / "sets_of_0_1"
CAPTIONED = {"captioned": "tar", "captioned_jsonl": "jsonl", "captioned_parquet": "parquet", "two_columns": "tar"}
REINFORCED = {"reinforced": "tar", "reinforced_parquet": "parquet"}
OF_CPU = ["--device", "cpu", "--num-workers", "0"]


def spec(name: str) -> str:
    return str(SETS / name / f"*.{(CAPTIONED | REINFORCED | {'captions_only': 'tar'})[name]}")


def members(folder: Path) -> dict[str, bytes]:
    """The bytes of all files in the tars of a folder, by name."""
    files = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            files |= {member.name: archive.extractfile(member).read() for member in archive}
    return files


def columns(folder: Path) -> dict[str, dict[str, list[str]]]:
    """The captions in the tars of a folder, by key and column."""
    return {
        name.removesuffix(".syn.json"): json.loads(data)
        for name, data in members(folder).items()
        if name.endswith(".syn.json")
    }


@pytest.mark.parametrize("name", [*CAPTIONED, *REINFORCED, "captions_only"])
def test_verify_finds_a_set_of_0_1_whole(name, capsys):
    assert capsmith.main(["verify", str(SETS / name), "--most-repeated", "1"]) == 0
    assert "7 records in 2 shards; all as the markers say" in capsys.readouterr().out


@pytest.mark.parametrize("name", CAPTIONED)
def test_gallery_shows_a_set_of_0_1(name, tmp_path):
    assert capsmith.main(["gallery", str(SETS / name), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    texts = [
        text for captions in columns(SETS / "captioned").values() for text in captions.get("syn_text_coca_tiny", ())
    ]
    assert len(texts) == 12 and all(text in page for text in texts)
    assert page.count("data:image/jpeg;base64,") == 6 and "not a picture: starts with" in page


@pytest.mark.parametrize("name", ["captioned", "captioned_jsonl", "captioned_parquet"])
def test_sets_of_0_1_are_joined(name, tmp_path, capsys):
    command = [
        "join",
        "--input",
        spec(name),
        "--captions",
        str(SETS / "captions_only"),
        "--output",
        str(tmp_path / "out"),
    ]
    assert capsmith.main(command) == 0
    assert "6 pictures with captions joined on uid, 1 without any to join" in capsys.readouterr().out
    before, apart, after = (
        columns(folder) for folder in (SETS / "captioned", SETS / "captions_only", tmp_path / "out")
    )
    assert after == {key: captions | apart[key] for key, captions in before.items()}


def test_sets_of_0_1_are_reported_on(tmp_path):
    inputs = [
        argument for name in CAPTIONED for argument in ("--input", f"{name}={spec(name)}") if name != "two_columns"
    ]
    assert capsmith.main(["diversity", *inputs, "--output", str(tmp_path)]) == 0
    reported = json.loads((tmp_path / "report.json").read_text())["columns"]
    assert [reported[name]["captions"] for name in CAPTIONED if name != "two_columns"] == [
        10,
        10,
        10,
    ]  # only pictures with original captions count
    assert reported["captioned"] == reported["captioned_jsonl"] == reported["captioned_parquet"]


def test_generate_with_its_captioner_on_its_set(tmp_path):
    """Columns, scores, pictures and texts of the set stay as they are; the same captioner wrote `two_columns`."""
    command = [
        "generate",
        "--input",
        spec("captioned"),
        "--model",
        str(SETS / "captioner"),
        "--num-captions",
        "2",
        "--redraws",
        "0",
        "--on-degenerate",
        "keep",
        "--similarity",
        "--max-error-rate",
        "1",
        "--output",
        str(tmp_path / "out"),
        *OF_CPU,
    ]
    assert capsmith.main(command) == 0
    before, previous, written = members(SETS / "captioned"), members(SETS / "two_columns"), members(tmp_path / "out")
    assert list(written) == list(previous)
    for name, data in written.items():
        if name.endswith((".jpg", ".txt")):
            assert data == before[name]
        elif name.endswith("syn.json"):
            assert {**json.loads(data), **json.loads(before[name])} == json.loads(data)
        elif not json.loads(before[name])["error"]:
            old_fields, new_fields = json.loads(before[name]), json.loads(data)
            scores, new_scores = old_fields.pop("caption_scores"), new_fields.pop("caption_scores")
            assert (
                new_fields == old_fields | {"source": new_fields["source"]}
                and set(new_scores) == {*scores, "syn_text_of_0_1"}
                and {**new_scores, **scores} == new_scores
            )
    settings = [
        json.loads((folder / "run.json").read_text())["fingerprint"]["columns"]["syn_text_of_0_1"]
        for folder in (SETS / "two_columns", tmp_path / "out")
    ]
    assert settings[0]["weights_sha256"] == settings[1]["weights_sha256"]


@pytest.mark.parametrize("name", ["captioned", "captioned_jsonl", "captioned_parquet"])
def test_reinforce_takes_a_set_of_0_1(name, tmp_path):
    """Each format gives the views and texts that 0.1 wrote, and the same embeddings up to rounding."""
    command = [
        "reinforce",
        "--input",
        spec(name),
        "--teacher",
        "coca_tiny",
        "--views",
        "2",
        "--max-error-rate",
        "1",
        "--output",
        str(tmp_path / "out"),
        *OF_CPU,
    ]
    assert capsmith.main(command) == 0
    previous, written = members(SETS / "reinforced"), members(tmp_path / "out")
    assert list(written) == list(previous)
    for name, data in written.items():
        if name.endswith("npz"):
            arrays, expected = np.load(io.BytesIO(data)), np.load(io.BytesIO(previous[name]))
            assert arrays.files == expected.files
            for array in arrays.files:
                np.testing.assert_allclose(arrays[array], expected[array], atol=1e-5)
        elif name.endswith(("syn.json", "paug.json", "jpg", "txt")):
            assert data == previous[name]


@pytest.mark.parametrize("name", REINFORCED)
def test_train_student_takes_a_set_of_0_1(name, tmp_path):
    student = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "open_clip_config.json").write_text(json.dumps({"model_cfg": student}))
    command = [
        "train-student",
        "--input",
        spec(name),
        "--student",
        str(tmp_path / "student"),
        "--output",
        str(tmp_path / "out"),
        "--samples-seen",
        "20",
        "--batch-size",
        "4",
        "--max-error-rate",
        "0.5",
        *OF_CPU,
    ]
    assert capsmith.main(command) == 0
    log = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in log] == [4, 8, 12, 16, 20]
    rejected = (tmp_path / "out" / "rejects.jsonl").read_text()
    assert "day/two words" in rejected and "day/broken" in rejected and "test2" not in rejected


@pytest.mark.parametrize("name", ["captioned", "captioned_parquet"])
def test_finetune_from_its_captioner_on_its_set(name, tmp_path):
    command = [
        "finetune",
        "--input",
        spec(name),
        "--model",
        str(SETS / "captioner"),
        "--output",
        str(tmp_path / "out"),
        "--samples-seen",
        "8",
        "--batch-size",
        "4",
        "--hold-out",
        "0",
        "--max-error-rate",
        "0.5",
        *OF_CPU,
    ]
    assert capsmith.main(command) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "5 pictures" in card and (tmp_path / "out" / "open_clip_model.safetensors").exists()
