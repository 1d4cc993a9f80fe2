import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagetext import limits
from imagetext.sources import read_samples
from imagetext.stores import StoreError


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf/datasets"))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def parquet_set(tmp_path, picture):
    """Three files of four pictures in a column of another name, and one file of another split."""
    import datasets

    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "path": datasets.Value("string"),
            "caption": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    (tmp_path / "set").mkdir()
    for split, count in (("train", 3), ("test", 1)):
        for part in range(count):
            rows = {
                "photo": [{"bytes": picture(10 * part + row), "path": None} for row in range(4)],
                "path": ["elsewhere"] * 4,
                "caption": [f"{split} {part} {row}" for row in range(4)],
                "label": [0, 1, 0, 1],
            }
            table = datasets.Dataset.from_dict(rows, features=features)
            table.to_parquet(str(tmp_path / f"set/{split}-{part:05d}-of-{count:05d}.parquet"))
    return f"datasets:{tmp_path}/set"


def test_each_file_is_a_shard(parquet_set, picture):
    shards = read_samples(parquet_set)
    assert [shard.name for shard in shards] == ["set-00000", "set-00001", "set-00002"] and shards == read_samples(
        parquet_set
    )
    for part, shard in enumerate(shards):
        samples = list(shard)
        assert [sample.image for sample in samples] == [
            picture(10 * part + row) for row in range(4)
        ]  # as found, not decoded
        assert [sample.captions for sample in samples] == [(f"train {part} {row}",) for row in range(4)]
        assert [sample.key for sample in samples] == [f"set-{part:05d}-{row:09d}" for row in range(4)]
        assert samples[1].meta["label"] == 1 and not samples[1].error
        assert list(pickle.loads(pickle.dumps(shard))) == samples
    (test,) = read_samples(f"{parquet_set}#test")
    assert [sample.captions for sample in test][0] == ("test 0 0",)
    (default,) = read_samples(f"{parquet_set}:default#test")
    assert list(default) == list(test)


@pytest.mark.parametrize("limit, most", [("FILE", 5000), ("VALUES", 50)])
def test_a_row_that_is_too_large_costs_itself_and_few_rows_are_held(tmp_path, monkeypatch, limit, most):
    from datasets.packaged_modules.parquet.parquet import Parquet

    rows = [["x"], ["y" * 5001] if limit == "FILE" else ["y"] * 60, ["z"]]
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"captions": rows}), tmp_path / "set/train.parquet")
    monkeypatch.setattr(limits, limit, most)
    sizes, tables = [], Parquet._generate_tables
    monkeypatch.setattr(
        Parquet,
        "_generate_tables",
        lambda self, **files: sizes.append(self.config.batch_size) or tables(self, **files),
    )
    (shard,) = read_samples(f"datasets:{tmp_path}/set")
    first, large, last = shard
    assert first.captions == ("x",) and last.captions == ("z",) and not first.error + last.error
    assert large.error.startswith("a row of ") and f"more than {most:,}" in large.error and not large.captions
    assert sizes == [64]


def test_a_folder_of_pictures(tmp_path, picture):
    folder = tmp_path / "pics/train"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture(number, "PNG"))
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{n}.png", "text": f"t{n}"}) + "\n" for n in range(3))
    )
    (shard,) = read_samples(f"datasets:{tmp_path}/pics")
    assert [(sample.image, sample.captions) for sample in shard] == [(picture(n, "PNG"), (f"t{n}",)) for n in range(3)]


def test_a_set_of_tars_is_named_by_them(tmp_path, picture, write_tar):
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars/0.tar", [("a.jpg", picture()), ("a.pth.gz", b"never opened")])
    with pytest.raises(ValueError, match="datasets:.*/tars: a set of tars; .* hf://datasets/"):
        read_samples(f"datasets:{tmp_path}/tars")


@pytest.mark.parametrize(
    "spec",
    ["datasets:", "datasets:{}/gone", "datasets:{}#no-such-split", "datasets:{}:no-such-config", "datasets:{}#"],
)
def test_a_set_that_cannot_be_loaded(parquet_set, spec):
    spec = spec.format(parquet_set.removeprefix("datasets:"))
    with pytest.raises(ValueError, match=spec.replace("{", "")):
        read_samples(spec)


def test_a_file_that_is_damaged_fails_its_shard(parquet_set, tmp_path):
    path = tmp_path / "set/train-00001-of-00003.parquet"
    shards = read_samples(parquet_set)
    path.write_bytes(path.read_bytes()[:-100])
    assert len(list(shards[0])) == len(list(shards[2])) == 4
    with pytest.raises(StoreError, match="set#train:1: "):
        list(shards[1])
