"""The card of a set: its header, its numbers, what it does not show; and the upload."""

import json
from pathlib import Path

import datasets
import pytest
import yaml
from markdown_it import MarkdownIt

import generate.sets.card
from captioners.base import Caption, Captioned
from generate.captions.run import run
from generate.reinforce.config import ReinforceConfig
from generate.reinforce.run import run as reinforce
from generate.select.config import SelectConfig
from generate.select.run import run as select
from generate.sets.join import JoinConfig
from generate.sets.join import run as join
from imagetext.sample import Record
from imagetext.shards import ShardWriter
from imagetext.sources import read_records

X = "syn_text_x"

LICENCES = ["CC BY 4.0", "CC BY 4.0", "", "CC BY 4.0"]


@pytest.fixture
def source(pictures, tmp_path):
    """A JSONL table of four pictures with licences, one of which does not decode."""
    for number, image in enumerate([*pictures(3), b"no picture"]):
        (tmp_path / f"{number}.jpg").write_bytes(image)
    path = tmp_path / "pictures.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {"key": f"k{number}", "image": f"{number}.jpg", "license": licence}
                if licence
                else {"key": f"k{number}", "image": f"{number}.jpg"}
            )
            + "\n"
            for number, licence in enumerate(LICENCES)
        )
    )
    return str(path)


def card(folder) -> tuple[dict, str]:
    """Return the header and the body of the card."""
    _, front, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


@pytest.mark.parametrize("format, pattern", [("webdataset", "*.tar"), ("jsonl", "*.jsonl"), ("parquet", "*.parquet")])
def test_a_finished_set_has_a_card_with_header_counts_licences_and_settings(
    captioner, source, configure, tmp_path, format, pattern
):
    assert run(configure(input=[source], format=format, max_error_rate=1, num_captions=2)) == 0
    front, body = card(tmp_path / "out")
    assert front["configs"] == [{"config_name": "default", "data_files": pattern}]
    assert front["size_categories"] == ["n<1K"] and front["task_categories"] == ["image-to-text"]
    assert f"4 pictures in 1 {format} shards" in body and "1 of them have no" in body
    for row in (f"| syn\\_text\\_fake | fake | 6 | 0 | {'0' * 64} |", "| CC BY 4.0 | 3 |", "| none stated | 1 |"):
        assert row in body.splitlines()
    [settings] = [
        token.content
        for token in MarkdownIt().parse(body)
        if token.type == "code_block" and "sampling" in token.content
    ]
    written = json.loads((tmp_path / "out" / "run.json").read_text())["fingerprint"]["columns"]
    assert yaml.safe_load(settings) == written
    assert str(tmp_path) not in body and "pictures.jsonl" in body


@pytest.mark.parametrize("format", ["webdataset", "jsonl", "parquet"])
def test_an_empty_tar_among_the_inputs_becomes_a_shard_without_records(
    captioner, make_tar, pictures, configure, tmp_path, format
):
    make_tar("00000", [])
    make_tar("00001", pictures(2))
    assert run(configure(format=format)) == 0
    assert f"2 pictures in 2 {format} shards" in card(tmp_path / "out")[1]
    again = configure(
        input=[str(tmp_path / "out")], output=str(tmp_path / "again"), format=format, replace_columns=True
    )
    assert run(again) == 0 and len(list(read_records(str(tmp_path / "again")))) == 2


def test_its_measures_are_those_of_diversity(captioner, source, configure, tmp_path):
    def caption(requests, sampling, **options):
        for key, *_ in requests:
            yield Captioned(
                key,
                tuple(
                    Caption(text, 0.0, False)
                    for text in ("red dog", "red cat", "two red dogs")[: sampling.num_captions]
                ),
            )

    captioner.caption = caption
    assert run(configure(input=[source], max_error_rate=1, num_captions=3)) == 0
    _, body = card(tmp_path / "out")
    # Three pictures have the same three captions, with 7 words: 5 different words among 21, 4 pairs among 12, 4 pairs
    # for the 7 words of a picture. Two of the three captions are short.
    assert "| syn\\_text\\_fake | 3 | 2.3 | 0.238 | 0.333 | 0.571 | 66.7 % |" in body.splitlines()


def test_there_is_none_before_all_shards_are_done(captioner, make_tar, pictures, configure, tmp_path):
    make_tar("00000", pictures(2))
    with open(make_tar("00001", pictures(2)), "r+b") as file:
        file.truncate(1000)
    assert run(configure()) == 1
    assert not (tmp_path / "out" / "README.md").exists()
    make_tar("00001", pictures(2))
    assert run(configure()) == 0
    assert (tmp_path / "out" / "README.md").exists()


def test_what_records_say_cannot_break_the_page(captioner, source, configure, tmp_path):
    hostile = "x | y\n# <script>alert(1)</script> [a](b)"
    with open(source, encoding="utf-8") as file:
        rows = [json.loads(line) | {"license": hostile} for line in file]
    with open(source, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    run(configure(input=[source], max_error_rate=1))
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(card(tmp_path / "out")[1])
    assert "<script" not in page and "<a href" not in page
    assert "<td>x | y # &lt;script&gt;alert(1)&lt;/script&gt; [a](b)</td>" in page


def test_a_set_is_uploaded_only_where_asked_for_and_only_when_whole(
    captioner, source, configure, tmp_path, monkeypatch
):
    calls = []

    class Api:
        def whoami(self):
            return {"name": "me"}

        def create_repo(self, name, **options):
            calls.append((name, options))

        def upload_folder(self, **options):
            calls.append(options)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert run(configure(input=[source])) == 3 and run(configure(input=[source], push_to_hub="me/set")) == 3
    assert calls == []
    with pytest.raises(ValueError, match="--push-to-hub you/set: the token may only write to me"):
        run(configure(input=[source], push_to_hub="you/set", output=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()
    assert run(configure(input=[source], push_to_hub="me/set", max_error_rate=1)) == 0
    assert calls == [
        ("me/set", {"repo_type": "dataset", "exist_ok": True}),
        {
            "repo_id": "me/set",
            "repo_type": "dataset",
            "folder_path": str(tmp_path / "out"),
            "ignore_patterns": generate.sets.card.NOT_UPLOADED,
        },
    ]


def test_the_measured_records_are_some_of_three_shards(
    captioner, make_tar, pictures, configure, tmp_path, monkeypatch
):
    for number in range(5):
        make_tar(f"{number:05d}", pictures(4))
    paths_read = []
    monkeypatch.setattr(
        "generate.sets.card.read_records", lambda path, **options: paths_read.append(path) or read_records(path)
    )
    monkeypatch.setattr("generate.sets.card.MEASURED_RECORDS", 3)
    run(configure())
    assert [path[-9:] for path in paths_read] == ["00000.tar", "00002.tar", "00004.tar"]
    assert "| syn\\_text\\_fake | 9 |" in card(tmp_path / "out")[1]


@pytest.mark.parametrize("format", ["webdataset", "jsonl", "parquet"])
def test_sets_that_are_made_of_others_are_read_by_the_name_of_their_folder(tmp_path, picture, format):
    """And their list of rejected records is not."""
    for name in ("00000", "r-1", "a [b]"):
        with ShardWriter(tmp_path / "in", name) as writer:
            for number in range(3):
                texts, scores = ("a red dog",), {"similarity": [number / 10]}
                writer.write(Record(f"k{number}", picture(number), ("alt",), columns={X: texts}, scores={X: scores}))
    folders = [str(tmp_path / name) for name in ("chosen", "joined", "reinforced", "chosen of reinforced")]
    chosen, joined, reinforced, chosen_again = folders
    source = [f"{tmp_path}/in/*.tar"]
    assert select(SelectConfig(input=source, output=chosen, format=format, where="similarity > 0.05")) == 0
    patterns = [f"{name}.{format.replace('webdataset', 'tar')}" for name in ("[0-9]*", "a [[]b]", "r-[0-9]*")]
    assert card(Path(chosen))[0]["configs"] == [{"config_name": "default", "data_files": patterns}]
    options = {"captions": source, "replace_columns": True}
    assert join(JoinConfig(input=[chosen], output=joined, format=format, **options)) == 0
    options = {"embeddings": "none", "views": 2, "device": "cpu", "num_workers": 0}
    assert reinforce(ReinforceConfig(input=[chosen], output=reinforced, format=format, **options)) == 0
    assert select(SelectConfig(input=[reinforced], output=chosen_again, format=format, where="text")) == 0
    for folder in folders:
        _, body = card(Path(folder))
        assert "6 records in 3" in body
        assert len(datasets.load_dataset(folder, split="train", cache_dir=str(tmp_path / "cache"))) == 6


@pytest.mark.parametrize("name", ["set", "https://huggingface.co/me/set", "me/set/"])
def test_what_is_no_name_of_a_set_on_the_hub_is_told_at_once(name, configure):
    with pytest.raises(ValueError, match="is not org/name"):
        configure(push_to_hub=name)
