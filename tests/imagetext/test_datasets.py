"""What `datasets` reads from our files, and faults of its webdataset reader that our layout avoids."""

import io
import json

import pytest
import torch
from PIL import Image

from imagetext.reinforced.embeddings import pack
from imagetext.reinforced.views import write_views
from imagetext.sample import Record
from imagetext.shards import ShardWriter, dataset_features
from imagetext.sources import read_records

X = "syn_text_x"


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf/datasets"))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    import datasets

    def load(loader, files, streaming, features=None):
        rows = datasets.load_dataset(
            loader,
            data_files=files,
            split="train",
            streaming=streaming,
            features=features,
            cache_dir=None if streaming else str(tmp_path / "cache"),
        )
        return list(rows)

    return load


def record(key, picture, error="", captions=("a dog",), **meta) -> Record:
    scores = {} if error else {X: {"logprob": [-1.5, -2.5], "truncated": [False, True], "flags": ["", "short"]}}
    columns = {} if error else {X: ("one", "two")}
    return Record(
        key, b"a text" if error else picture, captions, columns=columns, scores=scores, meta=meta, error=error
    )


def write(folder, name, records, **options) -> str:
    with ShardWriter(folder, name, columns=[X], **options) as writer:
        for item in records:
            writer.write(item)
    return writer.path


def run(tmp_path, picture, **options) -> list[str]:
    """Write two shards whose records fail first, with dots in keys and pictures of two encodings."""
    return [
        write(
            tmp_path,
            f"0000{shard}",
            [
                record(f"{shard}.{i}/x", picture(i, "PNG" if i % 2 else "JPEG"), "no picture" if i in (0, 3) else "")
                for i in range(8)
            ],
            **options,
        )
        for shard in range(2)
    ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("features", [False, True])
def test_a_run_with_failures(tmp_path, picture, load, streaming, features):
    rows = load("webdataset", run(tmp_path, picture), streaming, features=dataset_features([X]) if features else None)
    assert len(rows) == 16
    assert [row["json"]["error"] for row in rows] == 2 * (6 * [""] + 2 * ["no picture"])
    assert rows[0]["json"]["uid"] == "0.1/x" and rows[0]["__key__"] == "0%2E1/x"
    for row in rows:
        if row["json"]["error"]:
            assert row["jpg"] is None and row["txt"] is None and not row["syn.json"][X]
        else:
            assert row["jpg"].size == (12, 8) and row["txt"] == "a dog" and row["syn.json"] == {X: ["one", "two"]}
            assert row["json"]["caption_scores"] == {
                X: {"logprob": [-1.5, -2.5], "truncated": [False, True], "flags": ["", "short"]}
            }
            assert row["json"]["captions"] == ["a dog"] and (row["json"]["width"], row["json"]["height"]) == (12, 8)


@pytest.mark.parametrize("streaming", [False, True])
def test_under_five_records_need_features(tmp_path, picture, load, streaming):
    path = write(
        tmp_path, "few", [record("a", picture(), captions=()), record("b", picture()), record("c", None, "no picture")]
    )
    with pytest.raises(ValueError, match="share the same prefix or the same types"):
        load("webdataset", path, streaming)
    rows = load("webdataset", path, streaming, features=dataset_features([X]))
    assert [row["json"]["error"] for row in rows] == ["", "", "no picture"]
    assert rows[0]["jpg"].size == (12, 8) and rows[0]["txt"] is None and rows[1]["txt"] == "a dog"
    assert rows[1]["syn.json"] == {X: ["one", "two"]}


@pytest.mark.parametrize("streaming", [False, True])
def test_similarities_have_their_features(tmp_path, picture, load, streaming):
    scored = record("a", picture())
    scored.scores[X]["similarity"] = [0.25, -0.5]
    path = write(tmp_path, "similar", [scored])
    [row] = load("webdataset", path, streaming, features=dataset_features([X], similarity=True))
    assert row["json"]["caption_scores"][X]["similarity"] == [0.25, -0.5]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["npz", "pth.gz"])
def test_reinforced_records_need_features(tmp_path, picture, load, streaming, kind):
    views = [[[0, 1, 8, 7], [[0, 0.0], [6, -0.27]]], [[2, 0, 5, 5], None]]
    stored = {
        name: torch.randn(rows, 4).bfloat16() for name, rows in (("image_emb", 2), ("text_emb", 1), (f"{X}_emb", 2))
    }
    good = [record(str(number), picture()) for number in range(5)]
    for sample in good:
        sample.members.update({"paug.json": write_views(views), kind: pack(stored, kind)})
    path = write(tmp_path, "reinforced", [*good, record("5", None, "no picture")])
    with pytest.raises(Exception, match="mix list and non-list"):
        load("webdataset", path, streaming)
    rows = load("webdataset", path, streaming, features=dataset_features([X], embeddings=kind))
    assert [row["json"]["error"] for row in rows] == [""] * 5 + ["no picture"]
    assert rows[0]["paug.json"] == {"param_aug": views} and rows[5]["paug.json"] is None and rows[5][kind] is None
    assert rows[0][kind].pop("captions_emb") is None
    assert {
        name: torch.tensor([list(row) for row in vectors]).tolist() for name, vectors in rows[0][kind].items()
    } == {name: vectors.float().tolist() for name, vectors in stored.items()}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_set_whose_records_all_failed_keeps_their_errors(tmp_path, picture, load, streaming):
    path = write(tmp_path, "none", [record(str(i), None, "no picture") for i in range(6)])
    for features in (None, dataset_features([X])):
        assert [row["json"]["error"] for row in load("webdataset", path, streaming, features=features)] == [
            "no picture"
        ] * 6


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_returns_pictures(tmp_path, picture, load, streaming):
    rows = load("parquet", run(tmp_path, picture, format="parquet"), streaming)
    assert len(rows) == 16 and isinstance(rows[0]["image"], Image.Image) and rows[0]["image"].size == (12, 8)
    assert rows[0]["key"] == "0.1/x" and rows[0][X] == ["one", "two"]
    assert rows[7]["image"] is None and rows[7][X] == [] and rows[7]["error"] == "no picture"


@pytest.mark.parametrize("streaming", [False, True])
def test_jsonl_loads_with_datasets(tmp_path, picture, load, streaming):
    rows = load("json", run(tmp_path, picture, format="jsonl"), streaming)
    assert len(rows) == 16 and rows[0][X] == ["one", "two"]
    assert Image.open(tmp_path / rows[0]["image"]).size == (12, 8) and rows[7]["image"] is None


# ---- pitfalls: each is seen to happen, and then seen not to happen to us ------------------------------------------


def test_pitfall_a_png_member_among_jpg_ones(tmp_path, picture, write_tar, load):
    files = [(f"{i}.{'png' if i == 5 else 'jpg'}", picture(i, "PNG" if i == 5 else "JPEG")) for i in range(6)]
    assert load("webdataset", write_tar(tmp_path / "theirs.tar", files), False)[5]["jpg"] is None  # lost
    path = write(tmp_path, "ours", [record(str(i), picture(i, "PNG" if i == 5 else "JPEG")) for i in range(6)])
    assert load("webdataset", path, False)[5]["jpg"].format == "PNG"


def test_pitfall_a_json_field_that_comes_late(tmp_path, picture, write_tar, load):
    files = [
        (f"{i}.{suffix}", data)
        for i in range(7)
        for suffix, data in [
            ("jpg", picture(i)),
            ("json", json.dumps({"id": i} if i < 6 else {"id": i, "error": "late"}).encode()),
        ]
    ]
    assert "error" not in load("webdataset", write_tar(tmp_path / "theirs.tar", files), False)[6]["json"]  # dropped
    path = write(tmp_path, "ours", [record(str(i), picture(i), "late" if i == 6 else "") for i in range(7)])
    assert load("webdataset", path, False)[6]["json"]["error"] == "late"


def test_pitfall_dots_in_keys(tmp_path, picture, write_tar, load):
    files = [(f"photo.{i}.jpg", picture(i)) for i in range(6)]
    assert len(load("webdataset", write_tar(tmp_path / "theirs.tar", files), False)) != 6  # one row of six columns
    rows = load("webdataset", write(tmp_path, "ours", [record(f"photo.{i}", picture(i)) for i in range(6)]), False)
    assert [row["json"]["uid"] for row in rows] == [f"photo.{i}" for i in range(6)]


def test_pitfall_bytes_that_do_not_decode(tmp_path, picture, write_tar, load):
    files = [(f"{i}.jpg", b"a text" if i == 5 else picture(i)) for i in range(7)]
    with pytest.raises(Exception, match="cannot identify image"):
        load("webdataset", write_tar(tmp_path / "theirs.tar", files), False)
    path = write(tmp_path, "ours", [record(str(i), picture(i), "not a picture" if i == 5 else "") for i in range(7)])
    assert len(load("webdataset", path, False)) == 7


def test_pictures_are_stored_as_found(tmp_path, picture, load):
    """`datasets` shows them upright, and `width` and `height` are those of the upright picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8)).save(buffer, "JPEG", exif=exif)
    path = write(tmp_path, "ours", [record(str(i), buffer.getvalue()) for i in range(5)])
    row = load("webdataset", path, False)[0]
    assert row["jpg"].size == (8, 12) == (row["json"]["width"], row["json"]["height"])


def test_our_shards_that_datasets_wrote_as_parquet_are_ours(tmp_path, picture, load):
    import datasets

    shards = run(tmp_path, picture)
    datasets.load_dataset(
        "webdataset", data_files=shards, split="train", cache_dir=str(tmp_path / "cache")
    ).to_parquet(tmp_path / "t.parquet")
    ours, back = (
        sorted(read_records(path), key=lambda record: record.key) for path in (shards, str(tmp_path / "t.parquet"))
    )
    for sample, other in zip(ours, back, strict=True):
        assert (other.image, other.captions, other.columns, other.scores, other.error) == (
            sample.image,
            sample.captions,
            sample.columns,
            sample.scores,
            sample.error,
        )
        assert "source_fields" not in other.meta and other.meta["uid"] == sample.meta["uid"] == sample.key


def test_fields_of_others_beside_ours(tmp_path, picture, load):
    path = write(
        tmp_path, "0", [record(str(i), picture(i), source_fields={"error": 0.5, "width": i}) for i in range(6)]
    )
    assert [row["json"]["source_fields"] for row in load("webdataset", path, True)] == [
        {"error": 0.5, "width": i} for i in range(6)
    ]
