"""What `capsmith select` keeps, against a slow reference, for any order, shards, formats and processes."""

import json
import random
import threading
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch

import generate.select.page
import generate.select.run
from captioners.ranks import Rank
from generate.captions.templates import Expression
from generate.select.choose import with_captions
from generate.select.config import SelectConfig
from generate.select.judge import text_hash, tie_of
from generate.select.run import run
from generate.sets.verify import VerifyConfig
from generate.sets.verify import run as verify
from imagetext.reinforced.embeddings import named_texts, pack, unpack
from imagetext.reinforced.views import read_views
from imagetext.sample import Record
from imagetext.shards import ShardWriter, read_markers
from imagetext.sources import read_records
from tests.finetune.sets import VIEWS, row, write_config, write_set
from tests.generate.conftest import jpeg

X, Y = "syn_text_x", "syn_text_y"
TEXTS = ["a cat", "A cat.", "a dog", "two birds", "red house", "a boat", "snow"]


def make(number: int, draw: random.Random) -> Record:
    """Return a record with up to three captions in X, from few texts and scores, so that many are equal."""
    count = draw.randrange(4)
    texts = tuple(draw.choice(TEXTS) for _ in range(count))
    scores = {
        "similarity": [round(draw.random(), 1) for _ in texts],
        "flags": [draw.choice(["", "", "", "loop"]) for _ in texts],
        "logprob": [-1.0 * place for place in range(count)],
    }
    return Record(
        f"k{number}",
        jpeg(number),
        (f"alt {number}",),
        columns={X: texts, "tags_x": ("tag",)} if texts else {"tags_x": ("tag",)},
        scores={X: scores} if texts else {},
        members={"cls": b"kept"},
        meta={"label": draw.choice("abc"), "uid": f"u{number}"},
        error="" if draw.random() < 0.95 else "no picture",
    )


def write(folder, records, name="00000", **options) -> str:
    with ShardWriter(folder, name, originals=True, **options) as writer:
        for record in records:
            writer.write(record)
    return writer.path


@pytest.fixture(autouse=True)
def drawing(monkeypatch):
    """Leave out the figure, which takes longer than all else; returns the function that draws it, for one test."""
    figure = generate.select.page._figure
    monkeypatch.setattr(generate.select.page, "_figure", lambda *_: "")
    return figure


@pytest.fixture(scope="module")
def drawn_set(tmp_path_factory):
    """A folder with two shards of records, and the records by shard."""
    folder, draw = tmp_path_factory.mktemp("drawn_set"), random.Random(0)
    records = [make(number, draw) for number in range(80)]
    shards = {"00000": records[:45], "00001": records[45:]}
    for name, shard_records in shards.items():
        write(folder, shard_records, name)
    return folder, shards


def stay(shards, where, top, per_caption, per_class) -> dict[str, list[int]]:
    """Return the kept places in X, by key: applies the rules one after the other to the whole set in memory."""
    passing = {
        (record.key, place): (record.scores[X]["similarity"][place], -tie_of(record, name))
        for name, records in shards.items()
        for record in records
        if not record.error
        for place in range(len(record.columns.get(X, ())))
        if not where or (record.scores[X]["similarity"][place] >= 0.3 and not record.scores[X]["flags"][place])
    }
    by_key = {record.key: record for records in shards.values() for record in records}
    if per_caption:
        worth = defaultdict(dict)  # for each text, the best of each record
        for (key, place), value in passing.items():
            text = text_hash(by_key[key].columns[X][place])
            worth[text][key] = max(value, worth[text].get(key, value))
        allowed = {
            (text, key)
            for text, best_of_text in worth.items()
            for key in sorted(best_of_text, key=best_of_text.get, reverse=True)[:per_caption]
        }
        passing = {
            (key, place): value
            for (key, place), value in passing.items()
            if (text_hash(by_key[key].columns[X][place]), key) in allowed
        }
    best = {}
    for (key, _), value in passing.items():
        best[key] = max(value, best.get(key, value))
    if per_class:
        of_class = defaultdict(list)
        for key in sorted(best, key=best.get, reverse=True):
            of_class[by_key[key].meta["label"]].append(key)
        best = {key: best[key] for keys in of_class.values() for key in keys[:per_class]}
    least = (-1.0, 0)  # all captions are above
    if top:
        order, count = sorted(best.values(), reverse=True), round(top * len(by_key))
        least = order[count - 1] if len(order) > count else least
    kept = defaultdict(list)
    for (key, place), value in passing.items():
        if key in best and value >= least:
            kept[key].append(place)
    return dict(kept)


CASES = [
    (True, None, None, None),
    (False, 0.3, None, None),
    (True, 0.2, None, None),
    (False, None, 2, None),
    (False, None, None, 3),
    (True, 0.25, 4, 9),
    (False, 0.9, 1, 2),
]


@pytest.mark.parametrize("where, top, per_caption, per_class", CASES)
def test_what_stays_is_what_the_rules_say(drawn_set, tmp_path, where, top, per_caption, per_class, capsys):
    folder, shards = drawn_set
    config = SelectConfig(
        input=[f"{folder}/*.tar"],
        where="similarity >= 0.3 and not flags" if where else None,
        top=top,
        max_per_caption=per_caption,
        max_per_class=per_class,
        output=str(tmp_path / "out"),
    )
    assert run(config) == 0
    expected = stay(shards, where, top, per_caption=per_caption, per_class=per_class)
    by_key = {record.key: record for records in shards.values() for record in records}
    after = {record.key: record for record in read_records(str(tmp_path / "out"))}
    assert after.keys() == expected.keys() and len(expected) >= 4
    for key, record in after.items():
        before, places = by_key[key], expected[key]
        assert record.columns == {X: tuple(before.columns[X][place] for place in places), "tags_x": ("tag",)}
        assert record.scores[X] == {
            name: [values[place] for place in places] for name, values in before.scores[X].items()
        }
        assert (record.image, record.captions, record.members) == (before.image, before.captions, before.members)
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    in_input = [
        record for records in shards.values() for record in sorted(records, key=lambda record: bool(record.error))
    ]
    assert [line["key"] for line in lines] == [record.key for record in in_input if record.key not in expected]
    assert all(line["reason"] for line in lines)
    printed = capsys.readouterr().out
    assert f"{len(expected)} of 80 records are kept" in printed
    assert verify(VerifyConfig(folder=str(tmp_path / "out"), most_repeated=1)) == 0


def test_the_choice_is_the_same_in_any_order_format_and_number_of_processes(drawn_set, tmp_path):
    folder, shards = drawn_set
    chosen = {"top": 0.25, "max_per_caption": 4, "max_per_class": 9}
    expected = stay(shards, False, 0.25, per_caption=4, per_class=9)
    backwards = [f"{folder}/00001.tar", f"{folder}/00000.tar"]
    assert run(SelectConfig(input=backwards, output=str(tmp_path / "b"), format="parquet", **chosen)) == 0
    assert run(SelectConfig(input=[f"{tmp_path}/b"], output=str(tmp_path / "c"), format="jsonl", where="true")) == 0
    ranks = SelectConfig(input=[f"{folder}/*.tar"], output=str(tmp_path / "d"), **chosen)
    begun = threading.Event()
    assert run(ranks, Rank(0, 2), begun.set) == run(ranks, Rank(1, 2)) == 0 and begun.is_set()
    for name in "bcd":
        after = {record.key: record.columns[X] for record in read_records(str(tmp_path / name))}
        by_key = {record.key: record for records in shards.values() for record in records}
        assert after == {
            key: tuple(by_key[key].columns[X][place] for place in places) for key, places in expected.items()
        }


def test_a_stopped_run_resumes_with_what_it_had_settled(drawn_set, tmp_path, monkeypatch, files):
    folder, _ = drawn_set
    options = {"input": [f"{folder}/*.tar"], "top": 0.25, "max_per_caption": 4, "format": "parquet"}
    assert run(SelectConfig(output=str(tmp_path / "whole"), **options)) == 0
    choose, names = generate.select.run.choose, []

    def fail(record, shard, *arguments, **keywords):
        names.append(shard)
        if shard == "00001":
            raise OSError("the disk went away")
        return choose(record, shard, *arguments, **keywords)

    config = SelectConfig(output=str(tmp_path / "out"), **options)
    monkeypatch.setattr(generate.select.run, "choose", fail)
    assert run(config) == 1 and not (tmp_path / "out" / "rejected.jsonl").exists()
    monkeypatch.setattr(generate.select.run, "choose", choose)
    monkeypatch.setattr(generate.select.run, "settle", None)  # it must not be called again
    assert run(config) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    written, run_file = files(tmp_path / "out"), tmp_path / "out" / "run.json"
    for name, value in (("", "x"), ("threshold", None), ("threshold", [0.5, 1, 2]), ("over", "x"), ("columns", [1])):
        content = json.loads(written["run.json"])
        selection = content["fingerprint"]["select"]
        if not name:
            content["fingerprint"]["select"] = value
        elif value is None:
            del selection[name]
        else:
            selection[name] = value
        run_file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=rf"out: its run.json is not one of ours: select{name and '.'}{name}"):
            run(config)
        run_file.write_bytes(written["run.json"])
        assert files(tmp_path / "out") == written
    (tmp_path / "out" / "limits.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="limits.npz: is not what this run has settled"):
        run(config)


def test_other_inputs_than_were_settled_over_are_refused_and_added_to_a_where(drawn_set, tmp_path):
    folder, shards = drawn_set
    for options in ({"top": 0.25}, {"where": "similarity >= 0.3"}):
        output = str(tmp_path / next(iter(options)))
        assert run(SelectConfig(input=[f"{folder}/00000.tar"], output=output, **options)) == 0
        both = SelectConfig(input=[f"{folder}/*.tar"], output=output, **options)
        if "top" in options:
            with pytest.raises(ValueError, match="were settled over other inputs: 00001;"):
                run(both)
        assert run(both.model_copy(update={"overwrite": "top" in options})) == 0
        assert len(read_markers(output)) == 2


def test_a_dry_run_leaves_a_page_and_the_run_may_follow(drawn_set, drawing, tmp_path, capsys, monkeypatch):
    folder, shards = drawn_set
    monkeypatch.setattr(generate.select.page, "_figure", drawing)
    config = SelectConfig(input=[f"{folder}/*.tar"], output=str(tmp_path / "out"), top=0.25, where="not flags")
    config = config.model_copy(update={"max_per_caption": 1234})
    assert run(config.model_copy(update={"dry_run": True})) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dry_run.html"]
    page, printed = (tmp_path / "out" / "dry_run.html").read_text(), capsys.readouterr().out
    threshold = printed.partition("threshold of similarity is ")[2].partition("\n")[0]
    assert "20 of 80 records are kept (25.0%)" in printed and f"threshold {threshold}" in page
    assert "<dd>not flags</dd>" in page and "<dt>Of one caption</dt><dd>1,234 records at most</dd>" in page
    assert "--paper:" in page and "{%" not in page  # the colours of all pages, and no template left in it
    assert run(config) == 0 and (tmp_path / "out" / "select.html").exists()
    assert len(list(read_records(str(tmp_path / "out")))) == 20


def test_a_dry_run_of_a_condition_agrees_with_the_run_where_there_is_no_similarity(tmp_path, capsys):
    """Also where only some captions have one."""
    scores = ({"flags": [""]}, {"flags": ["loop"]}, {"flags": [""], "similarity": [0.5]})
    for count in (2, 3):
        records = [
            Record(f"k{number}", jpeg(number), (), columns={X: ("x",)}, scores={X: score})
            for number, score in enumerate(scores[:count])
        ]
        write(tmp_path / f"in{count}", records)
        options = {"input": [f"{tmp_path}/in{count}/*.tar"], "output": str(tmp_path / f"out{count}")}
        assert run(SelectConfig(**options, where="not flags", dry_run=True)) == 0
        assert f"{count - 1} of {count} records are kept" in capsys.readouterr().out
        assert ("Distribution" in (tmp_path / f"out{count}" / "dry_run.html").read_text()) == (count == 3)
        assert run(SelectConfig(**options, where="not flags")) == 0
        assert len(list(read_records(options["output"]))) == count - 1


def test_a_value_that_is_no_number_is_refused_before_the_first_pass(drawn_set, tmp_path, monkeypatch):
    monkeypatch.setattr(generate.select.run, "settle", None)
    for by in ("text", "flags"):
        with pytest.raises(ValueError, match=f"--by: '.*' is no number; none of the first .* a number as {by}"):
            run(SelectConfig(input=[f"{drawn_set[0]}/*.tar"], output=str(tmp_path / "out"), top=0.5, by=by))


def test_a_shard_of_which_nothing_stays_is_empty_and_does_not_disturb(tmp_path):
    for name, similarity in (("a", 0.1), ("b", 0.9)):
        write(
            tmp_path / "in",
            [Record(name, jpeg(1), (), columns={X: ("x",)}, scores={X: {"similarity": [similarity]}})],
            name,
        )
    for format, suffix in (("webdataset", "tar"), ("jsonl", "jsonl"), ("parquet", "parquet")):
        output = str(tmp_path / format)
        assert run(SelectConfig(input=[f"{tmp_path}/in"], where="similarity > 0.5", output=output, format=format)) == 0
        assert [record.key for record in read_records(output)] == ["b"]
        assert [record.key for record in read_records(f"{output}/[ab].{suffix}")] == ["b"]
        assert verify(VerifyConfig(folder=output, most_repeated=1)) == 0
    nothing = SelectConfig(input=[f"{tmp_path}/in"], where="similarity > 1", output=str(tmp_path / "none"))
    assert run(nothing) == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"where": "simlarity > 0.2"}, "--where 'simlarity > 0.2' names simlarity, which no caption"),
        ({"top": 0.5, "by": "json.x + aesthetic"}, "--by 'json.x + aesthetic' names aesthetic"),
        ({"where": "json.x > 1 and json['My y'] > 1"}, "names json.My y, json.x, but none of the first"),
        ({"top": 0.5, "column": ["syn_text_z"]}, "--column: syn_text_z: none of the first"),
        ({"top": 0.001}, "--top 0.001: keeps none of 80 records"),
        ({"where": "label == 'a'", "label": "nowhere"}, "--label nowhere: the first 20 records have no label: "),
    ],
)
def test_what_the_input_lacks_is_told_before_anything_is_written(drawn_set, tmp_path, options, message):
    folder, _ = drawn_set
    with pytest.raises(ValueError, match=".*") as caught:
        run(SelectConfig(input=[f"{folder}/*.tar"], output=str(tmp_path / "out"), **options))
    assert message in str(caught.value) and "\n" not in message
    assert not any(path.name != ".capsmith.lock" for path in (tmp_path / "out").glob("*"))


def test_originals_alone_are_chosen_by_fields_of_the_record(tmp_path):
    rows = [
        {"key": f"k{number}", "caption": f"alt {number}", "score": score}
        for number, score in enumerate([0.1, None, 0.4, "high", 0.3])
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"input": [f"{tmp_path}/in.jsonl"], "column": ["text"], "format": "jsonl"}
    output = str(tmp_path / "out")
    assert run(SelectConfig(output=output, top=0.4, by="json.score * 2", **options)) == 0
    assert [record.key for record in read_records(output)] == ["k2", "k4"]
    reasons = {
        line["key"]: line["reason"]
        for line in map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    }
    assert "the record has no such value as score" in reasons["k1"] and "'high' is no number" in reasons["k3"]
    assert reasons["k0"] == "its best score is 0.2, and the threshold is 0.6"
    assert run(SelectConfig(output=str(tmp_path / "equal"), top=0.2, by="1", **options)) == 0
    equal = [json.loads(line)["reason"] for line in (tmp_path / "equal" / "rejected.jsonl").read_text().splitlines()]
    assert equal == ["its best score is the threshold, 1; a hash of the key chose among equal scores"] * 4
    with pytest.raises(ValueError, match="--column: none of the first 5 .* text is the original captions"):
        run(SelectConfig(input=[f"{tmp_path}/in.jsonl"], where="true", output=str(tmp_path / "no")))
    with pytest.raises(ValueError, match="--label: none of the first 5 .* has a class; .* folder, for the name of"):
        run(SelectConfig(output=str(tmp_path / "no"), where="true", max_per_class=1, **options))


# ---- embeddings -----------------------------------------------------------------------------------------------------


def vector(text: str, size: int = 4) -> torch.Tensor:
    """Return a different vector for each text, which both file formats store exactly."""
    draw = np.random.default_rng(list(text.encode()))
    return torch.from_numpy(draw.integers(-8, 8, size).astype(np.float32))


def reinforced(kind: str, older: bool, captions=("alt", "other alt")) -> Record:
    columns = {X: ("x0", "x1", "x2"), Y: ("y0",)}
    texts = named_texts(captions[0], captions, columns)
    if older:
        texts = {"text_emb": [*captions, *columns[X], *columns[Y]]}
    rows = {name: torch.stack([vector(text) for text in column_texts]) for name, column_texts in texts.items()}
    member = pack({"image_emb": torch.ones(2, 4), **rows}, kind)
    return Record(
        "k", jpeg(1), captions, columns=columns, members={kind: member, "paug.json": b"{}", "odd.npz": b"other"}
    )


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("kind", ["npz", "pth.gz"])
def test_embeddings_stay_beside_their_captions(kind, older):
    record = reinforced(kind, older)
    record = replace(record, members={kind: record.members[kind], "paug.json": b"{}"})
    assert with_captions(record, {X: [0, 1, 2]})[0] == record  # nothing is left out: equal bytes
    for places, text_from_synthetic in (
        ({X: [2, 0]}, False),
        ({X: [1], "text": [1]}, False),
        ({X: [], Y: [0]}, False),
    ):
        chosen, text = with_captions(record, places, text_from_synthetic=text_from_synthetic)
        embeddings = unpack(chosen.members)
        expected = named_texts(text, chosen.captions, chosen.columns)
        assert embeddings.keys() == {"image_emb", *expected} and chosen.members["paug.json"] == b"{}"
        assert embeddings["image_emb"].equal(torch.ones(2, 4))
        for name, expected_texts in expected.items():
            assert embeddings[name].equal(torch.stack([vector(text) for text in expected_texts])), name


def test_embeddings_of_which_cannot_be_told_whose_they_are_make_a_record_unusable():
    record = reinforced("npz", False)
    with pytest.raises(ValueError, match="2 rows for 3"):
        with_captions(
            replace(record, columns={X: ("x0", "x1", "x2"), Y: ("y0",)}, members=reinforced_less()), {X: [0]}
        )
    with pytest.raises(ValueError, match="syn_text_x_emb: has no vector for each of the 3 captions"):
        with_captions(Record("k", None, columns={X: ("a", "b", "c")}, meta={f"{X}_emb": "gzipped"}), {X: [0]})
    chosen, _ = with_captions(
        Record("k", None, columns={X: ("a", "b", "c")}, meta={f"{X}_emb": [1, 2, 3]}), {X: [0, 2]}
    )
    assert chosen.meta == {f"{X}_emb": [1, 3]}


def reinforced_less() -> dict[str, bytes]:
    rows = {"image_emb": torch.ones(2, 4), "text_emb": torch.ones(1, 4), f"{X}_emb": torch.ones(2, 4)}
    return {"npz": pack(rows, "npz")}


@pytest.mark.parametrize("layout, kind, format", [("newer", "npz", "webdataset"), ("older", "pth.gz", "parquet")])
def test_a_reinforced_set_stays_one(tmp_path, layout, kind, format):
    spec, output = write_set(tmp_path / "in", layout=layout, kind=kind), tmp_path / "out"
    where = "(text | last) == '1' and key != 'r003'"  # the second caption of each column
    assert run(SelectConfig(input=[spec], where=where, output=str(output), format=format)) == 0
    assert (output / "config.json").read_bytes() == (tmp_path / "in" / "config.json").read_bytes()
    after = list(read_records(str(output)))
    assert sorted(record.meta["uid"] for record in after) == ["r0", "r1", "r2", "r4", "r5"]
    for record in after:
        number = int(record.meta["uid"][1:])
        assert record.columns == {"syn_text_a": (f"1 {number} 1",), "syn_text_b": (f"2 {number} 1",)}
        rows = {name: matrix.tolist() for name, matrix in unpack(record.members).items()}
        assert len(rows.pop("image_emb")) == VIEWS == len(read_views(record.members["paug.json"]))
        assert rows == {
            "text_emb": [row(0, number, 0)],
            "syn_text_a_emb": [row(1, number, 1)],
            "syn_text_b_emb": [row(2, number, 1)],
        }
    write_set(tmp_path / "other", layout=layout, kind=kind)
    write_config(tmp_path / "other", scales=(1.0, 2.0))
    (tmp_path / "other" / "00000.tar").rename(tmp_path / "other" / "00007.tar")
    both = SelectConfig(input=[spec, f"{tmp_path}/other/00007.tar"], where=where, output=str(tmp_path / "both"))
    with pytest.raises(ValueError, match="are reinforced with different settings"):
        run(both)


# ---- expressions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, values, value",
    [
        ("similarity >= 0.25 and not flags", {"similarity": 0.3, "flags": ""}, True),
        ("similarity >= 0.25 and not flags", {"similarity": 0.3, "flags": "loop cut"}, False),
        ("'loop' in flags", {"flags": "loop cut"}, True),
        ("2 * similarity - logprob / 4 + 1", {"similarity": 0.5, "logprob": -2}, 2.5),
        ("-similarity", {"similarity": 0.5}, -0.5),
        ("label in ('cat', 'dog')", {"label": "dog"}, True),
        ("json.scores.clip > 3", {"json": {"scores": {"clip": 4}}}, True),
        ("text | lower ~ column", {"text": "A", "column": "x"}, "ax"),
        ("(similarity | default(1)) > 0.5", {}, True),
    ],
)
def test_an_expression_says_what_jinja_says(source, values, value):
    assert Expression(source).value(values) == value


@pytest.mark.parametrize(
    "source, message",
    [
        ("f(x)", "no calls"),
        ("a ** 9", "no \\*\\*"),
        ("'%s' % a", "no mod"),
        ("a b", "goes on after its end"),
        ("", "unexpected"),
        ("a }}{{ b", "goes on after its end"),
        ("_steps", "is no name"),
        ("{'a': 1}", "no dict"),
        ("a | attr('b')", "no filter attr"),
        ("(" * 3000, "nested too deep"),
        ("a" * 70_000, "70,000 characters"),
    ],
)
def test_what_no_expression_has_is_told(source, message):
    with pytest.raises(ValueError, match=message):
        Expression(source)


@pytest.mark.parametrize(
    "source, values, message",
    [
        ("similarity > 1", {}, "the record has no similarity"),
        ("similarity", {}, "the record has no similarity"),
        ("similarity > 1", {"similarity": "high"}, "not supported"),
        ("text * 1000", {"text": "x"}, "'x' is no number"),
        ("text + text", {"text": "x"}, "'x' is no number"),
        ("json.x / 0", {"json": {"x": 1}}, "division by zero"),
        ("text.__class__.__mro__", {"text": "x"}, "no such value as __"),
        ("text ~ text", {"text": "x" * 40_000}, "more than 65,536"),
    ],
)
def test_what_a_value_does_not_bear_is_a_reason(source, values, message):
    with pytest.raises(ValueError, match=message):
        Expression(source).value(values)


def test_flags_that_choose_nothing_are_refused():
    for options, message in (
        ({}, "none is given, so all records would be kept"),
        ({"where": "true", "by": "logprob"}, "--by: is for"),
        ({"top": 0.5, "class_names": "x"}, "--class-names"),
        ({"top": 0.5, "column": ["caption"]}, "neither the name of a column"),
        ({"top": 0.5, "device": "cuda"}, "device"),
        ({"top": 0.5, "concurrency": 2}, "concurrency: 2 is for --engine ray"),
    ):
        with pytest.raises(ValueError, match=message):
            SelectConfig(input=["a"], output="b", **options)
