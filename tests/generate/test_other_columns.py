"""Columns that are no true captions, in finished sets: they are verified, shown, measured by name, never embedded."""

import hashlib
import json
from dataclasses import replace

from diversity.config import DiversityConfig
from diversity.run import run as diversity
from generate.reinforce.config import ReinforceConfig
from generate.reinforce.stages import read_texts
from generate.runs.manifest import write_run
from generate.sets.gallery import card_of
from generate.sets.join import JoinConfig
from generate.sets.join import run as join
from generate.sets.verify import VerifyConfig
from generate.sets.verify import run as verify
from imagetext.sample import Record
from imagetext.shards import ShardWriter

X, NEG, TAGS, NOT = "syn_text_x", "neg_text_x", "tags_x", "neg_tags_x"
COLUMNS = {X: ("a dog", "the dog"), NEG: ("a cat",), TAGS: ("dog", "grass"), NOT: ("cat", "sea")}


def record(picture, number=0, **more) -> Record:
    return replace(Record(f"k{number}", picture(number), (f"alt {number}",), columns=COLUMNS), **more)


def write(folder, records, columns=()) -> str:
    with ShardWriter(folder, "00000", columns=columns) as writer:
        for record in records:
            writer.write(record)
    return writer.path


def test_the_gallery_shows_captions_before_tags_and_what_is_true_before_what_is_not(picture):
    mixed = {name: COLUMNS[name] for name in (NOT, TAGS, NEG, X)}
    assert list(card_of(record(picture, columns=mixed)).columns) == ["original", X, NEG, TAGS, NOT]


def test_verify_counts_them_and_asks_of_tags_no_variety(tmp_path, picture, capsys):
    records = [
        record(picture, number, columns={X: (f"a dog {number}",), NEG: (f"a cat {number}",), TAGS: ("dog",)})
        for number in range(30)
    ]
    out = tmp_path / "out"
    write(out, records, columns=[X, NEG, TAGS])
    write_run(str(out), {"rules": 1, "columns": {}}, ["00000"])
    assert verify(VerifyConfig(folder=str(out))) == 0
    marker = json.loads((out / "00000.done.json").read_text())
    (out / "00000.done.json").write_text(json.dumps(marker | {"captions": marker["captions"] | {TAGS: 31}}))
    assert verify(VerifyConfig(folder=str(out))) == 1
    assert "30 captions in tags_x, its marker says 31" in capsys.readouterr().out
    write(out, [replace(item, columns={**item.columns, NEG: ("a cat",)}) for item in records], columns=[X, NEG, TAGS])
    assert verify(VerifyConfig(folder=str(out))) == 1
    assert "problem: neg_text_x: at least 30 of 30 pictures (100.0%) have 'a cat'" in capsys.readouterr().out


def test_the_gallery_shows_them_under_their_names(picture):
    card = card_of(record(picture))
    assert [*card.columns] == ["original", X, NEG, TAGS, NOT] and card.columns[NEG][0].text == "a cat"


def test_diversity_measures_them_where_they_are_asked_for(tmp_path, picture, capsys):
    records = [
        record(picture, number, columns={X: (f"a dog runs {number}",), NEG: (f"a cat sits {number}",)})
        for number in range(12)
    ]
    path = write(tmp_path, records)
    for columns, names in (([], {X}), ([X, NEG], {X, NEG})):
        out = tmp_path / f"report{len(columns)}"
        config = DiversityConfig(
            input=[path], column=columns, output=str(out), images=["none"], references="none", embedder="none"
        )
        assert diversity(config) == 0
        report = json.loads((out / "report.json").read_text())
        assert {*report["columns"]} == names


def test_reinforce_embeds_captions_alone(picture):
    source = record(picture)
    texts, error = read_texts(source, ReinforceConfig(input=["x"], output="y", teacher=["z"]))
    assert texts.chosen == (X,) and set(texts.columns) == {X} and not error
    _, error = read_texts(source, ReinforceConfig(input=["x"], output="y", teacher=["z"], columns="^neg_text"))
    assert error == "no captions in columns like '^neg_text'"
    alone = record(picture, columns={NEG: ("a cat",)})  # trainers of reinforced sets skip it
    assert "no captions in columns" in read_texts(alone, ReinforceConfig(input=["x"], output="y", teacher=["z"]))[1]


def test_the_command_joins_them(tmp_path, picture, capsys):
    path = write(tmp_path / "in", [record(picture, number, columns={X: ("a dog",)}) for number in range(2)])
    (tmp_path / "n.jsonl").write_text(json.dumps({"sha256": hashlib.sha256(picture(1)).hexdigest(), NEG: "no"}) + "\n")
    config = JoinConfig(input=[path], captions=[str(tmp_path / "n.jsonl")], on="sha256", output=str(tmp_path / "out"))
    assert join(config) == 0 and "1 pictures with captions joined on sha256" in capsys.readouterr().out
    assert verify(VerifyConfig(folder=str(tmp_path / "out"))) == 0
