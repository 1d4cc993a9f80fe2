"""Every recipe end to end: broken pictures, missing texts, refusals and odd answers."""

import json
import re
from types import SimpleNamespace

import pytest

import generate.captions.load
from captioners.base import Caption, Captioned
from captioners.rules.negatives import NOTHING
from generate.captions.config import GenerateConfig
from generate.captions.run import run
from generate.captions.settled_column import SettledColumn
from generate.captions.stages import caption_samples
from generate.captions.tasks import Task
from generate.sets import verify
from imagetext.sample import Record
from imagetext.shards import ShardWriter
from imagetext.sources import read_records
from tests.captioners.fake_server import FakeServer
from tests.captioners.lm.models import CHAT, save
from tests.captioners.vlm import models as vlm_models
from tests.generate.conftest import FakeCaptioner, jpeg

SORRY = "I'm sorry, but I can't help with that."


class Writer(FakeCaptioner):
    """A captioner that takes instructions: it refuses keys with 1 at first and keys with 2 always."""

    takes_instruction = True

    def __init__(self, name: str, looks: bool = False):
        super().__init__(name)
        self.looks_at_pictures, self.needs_picture, self.needs_instruction = looks, False, not looks
        self.asked: list[tuple[str, bool, str | None]] = []

    def caption(self, requests, sampling, *, column="", first_index=0, similarity=False, batch_size=None):
        for request in requests:
            self.asked.append((request.key, request.picture is not None, request.instruction))
            number = int(re.search(r"\d", request.key)[0])
            refuses = number == 2 or number == 1 and first_index == 0
            texts = [SORRY if refuses else self.answer(sampling, number) for _ in range(sampling.num_captions)]
            yield Captioned(request.key, tuple(Caption(text, None, False) for text in texts))

    def answer(self, sampling, number: int) -> str:
        if sampling.answer != "json":
            return f'Sure! Here is the caption: "There is a red bicycle of number {number} near the house."'
        fields = {
            "negative": f"a blue bicycle no. {number} at the house",
            "negative_tags": ["car", "red"],
            "kind": "attribute",
        }
        if '"paraphrase"' in sampling.json_schema:
            fields |= {"paraphrase": f"There is a red bicycle of number {number} near the house."}
        else:
            fields |= {
                "description": f"There is a red bicycle of number {number} near the house.",
                "tags": ["red", "bicycle"],
            }
        return f"```json\n{json.dumps(fields)}\n```"


@pytest.fixture
def folder(tmp_path):
    """Pictures in a folder for each class: good ones, one that is broken, and one without a text."""
    for number in range(7):
        place = tmp_path / "in" / ("0/a bike" if number < 4 else "1/bike")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"p {number}.jpg").write_bytes(b"no picture" if number == 5 else jpeg(number))
        if number != 6:
            (place / f"p {number}.txt").write_text(f"a red bicycle no. {number} at the house", "utf-8")
    return tmp_path / "in"


@pytest.fixture
def loaded(monkeypatch):
    """Captioners by name: `m` sees pictures, `w` gets only instructions, `coca` takes no instructions."""
    captioners = {}

    def load_captioner(name, pretrained, **options):
        return captioners.setdefault(
            name, FakeCaptioner("coca") if name == "coca" else Writer(name, looks=name == "m")
        )

    monkeypatch.setattr(generate.captions.load, "load_captioner", load_captioner)
    return captioners


def configure(folder, output, **options) -> GenerateConfig:
    return GenerateConfig(
        **{
            "input": sorted(map(str, folder.iterdir())) if folder.is_dir() else [str(folder)],
            "output": output,
            "device": "cpu",
            "num_workers": 0,
            "max_error_rate": 1,
            **options,
        }
    )


def kill_and_resume(config, tmp_path, files, monkeypatch, after: int) -> None:
    """Kill the run after so many records, when its first shard is complete; resumed, it must give the same files."""
    write, records_left = ShardWriter.write, [after]

    def killed(self, record, text=None):
        records_left[0] -= 1
        if records_left[0] < 0:
            raise KeyboardInterrupt
        write(self, record, text)

    again = config.model_copy(update={"output": str(tmp_path / "again")})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ShardWriter, "write", killed)
        run(again)
    assert len(list((tmp_path / "again").glob("*.tar"))) == 1
    assert run(again) == 0
    assert files(tmp_path / "again") == files(tmp_path / "out")


# The words of an answer; which pictures have which column, and which of those fell back to what
RECIPES = {
    "laclip": ({"model": "w"}, {"syn_text_laclip": "01234"}, {2: "text"}),
    "veclip": (
        {"model": "coca", "text_model": "w", "on_degenerate": "keep"},
        {"syn_text_visual": "012346", "syn_text_veclip": "012346"},
        {6: "syn_text_visual"},
    ),
    "hq-clip": (
        {"model": "m"},
        {"syn_text_hq": "012346", "neg_text_hq": "01346", "tags_hq": "01346", "neg_tags_hq": "01346"},
        {2: "text"},
    ),
    "tulip": (
        {"model": "w"},
        {"syn_text_tulip": "01234", "neg_text_tulip": "0134", "tags_tulip_kind": "0134"},
        {2: "text"},
    ),
    "idea": ({"model": "m", "label": "folder"}, {"syn_text_idea": "01346"}, {}),
    "recaption": ({"model": "m"}, {"syn_text_recap": "012346"}, {2: "text"}),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_end_to_end_and_killed_and_resumed(recipe, folder, loaded, tmp_path, monkeypatch, files):
    models, columns, fell_back = RECIPES[recipe]
    config = configure(folder, tmp_path / "out", recipe=recipe, **models)
    assert run(config) == 0
    assert verify.run(verify.VerifyConfig(folder=str(tmp_path / "out"), most_repeated=1)) == 0
    records = {
        int(re.search(r"\d", record.key)[0]): record for record in read_records(str(tmp_path / "out" / "*.tar"))
    }
    assert sorted(records) == list(range(7))
    for name, numbers in columns.items():
        assert "".join(str(number) for number in sorted(records) if records[number].columns.get(name)) == numbers, name
    good = {number for numbers in columns.values() for number in map(int, numbers)}
    assert {number for number, record in records.items() if record.error} == {*range(7)} - good
    assert "picture" in records[5].error
    if 6 not in good:
        assert "the record has no text" in records[6].error
    if 2 not in good:
        assert "refusal" in records[2].error
    last = list(columns)[0] if len(columns) > 2 else list(columns)[-1]
    for number, place in fell_back.items():
        assert records[number].scores[last]["flags"] == [f"fallback:{place}"]
        expected = records[number].captions[:1] if place == "text" else records[number].columns[place][:1]
        assert records[number].columns[last] == expected
    if recipe != "veclip":
        assert records[0].columns[last] == ("There is a red bicycle of number 0 near the house.",)
        assert "cut:" in records[0].scores[last]["flags"][0]
    assert all(record.captions for number, record in records.items() if number != 6)

    kill_and_resume(config, tmp_path, files, monkeypatch=monkeypatch, after=5)


def test_pictures_that_no_column_looks_at_are_not_decoded_and_may_be_missing(loaded, tmp_path, monkeypatch):
    rows = [{"key": f"{number}", "caption": f"a red bicycle no. {number} at the house"} for number in (0, 1, 3)]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    monkeypatch.setattr("generate.captions.stages.decode_image", None)
    for format in ("webdataset", "jsonl", "parquet"):
        config = configure(tmp_path / "t.jsonl", tmp_path / format, recipe="laclip", model="w", format=format)
        assert run(config.model_copy(update={"max_error_rate": 0})) == 0
        suffix = {"webdataset": "tar"}.get(format, format)
        records = list(read_records(str(tmp_path / format / f"*.{suffix}")))
        assert [(record.error, record.image) for record in records] == [("", None)] * 3
        assert all(record.columns["syn_text_laclip"] and record.captions for record in records)
        assert verify.run(verify.VerifyConfig(folder=str(tmp_path / format), most_repeated=1)) == 0
    assert {picture for _, picture, _ in loaded["w"].asked} == {False}
    assert {instruction.count("=>") for *_, instruction in loaded["w"].asked} == {4}  # three pairs and the caption
    config = configure(tmp_path / "t.jsonl", tmp_path / "p", recipe="recaption", model="m")
    with pytest.raises(ValueError, match="no column of pictures"):
        run(config)


@pytest.mark.parametrize("format", ["csv", "json"])
def test_a_table_whose_pictures_are_not_here_is_rewritten(format, loaded, tmp_path):
    """A picture may be missing, outside, a folder, or not named; all other errors of a row remain errors."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "here.jpg").write_bytes(jpeg(0))
    (tmp_path / "in" / "none.jpg").write_bytes(b"no picture")
    names = ["gone.jpg", "http://x/gone.jpg", "", ".", "here.jpg", "none.jpg"]
    numbers = [0, 1, 3, 4, 6, 7]
    if format == "csv":
        rows = [f"{number},{name},a red bicycle no. {number}" for number, name in zip(numbers, names)]
        (tmp_path / "in" / "t.csv").write_text("\n".join(["key,image,caption", *rows, "8,gone too.jpg,"]), "utf-8")
        source = str(tmp_path / "in" / "t.csv")
    else:  # as COCO's annotations are
        images = [{"id": number, "file_name": name or "no.jpg"} for number, name in zip(numbers, names)]
        annotations = [{"image_id": number, "caption": f"a red bicycle no. {number}"} for number in numbers]
        document = {"images": images, "annotations": annotations}
        (tmp_path / "in" / "captions.json").write_text(json.dumps(document), "utf-8")
        source = f"coco:{tmp_path / 'in' / 'captions.json'}"
    options = {"instruction": "Say this: {{ text }}", "column": "syn_text_w", "model": "w", "redraws": 1}
    config = configure(tmp_path / "in", tmp_path / "out", **options).model_copy(update={"input": [source]})
    assert run(config) == 0
    written = {record.meta["source"]: record for record in read_records(str(tmp_path / "out" / "*.tar"))}
    errors = {source: record.error for source, record in written.items() if record.error}
    assert len(written) == len(names) + (format == "csv") and len(errors) == 1 + (format == "csv")
    assert "not a picture" in errors["none.jpg"]
    if format == "csv":
        assert "the record has no text" in errors["gone too.jpg"]
    good = [record for record in written.values() if not record.error]
    assert all(record.columns["syn_text_w"] and record.captions for record in good)
    assert [record.meta["source"] for record in good if record.image is not None] == ["here.jpg"]
    assert verify.run(verify.VerifyConfig(folder=str(tmp_path / "out"), most_repeated=1)) == 0
    config = configure(tmp_path / "in", tmp_path / "seen", model="m").model_copy(update={"input": [source]})
    assert run(config) == 0
    errors_with_pictures = [record.error for record in read_records(str(tmp_path / "seen" / "*.tar"))]
    assert (
        sum(map(bool, errors_with_pictures)) == len(written) - 1
    )  # where a column looks at pictures, these are failures


def test_a_look_at_a_task_takes_its_first_records(folder, loaded, tmp_path, capsys):
    rows = [json.dumps({"key": f"{number}", "caption": f"a bicycle no. {number}"}) for number in (3, 4, 5)]
    (tmp_path / "t.jsonl").write_text("\n".join(rows), "utf-8")
    for place, recipe, model, first in [(folder, "hq-clip", "m", 0), (tmp_path / "t.jsonl", "laclip", "w", 3)]:
        assert run(configure(place, tmp_path / recipe, recipe=recipe, model=model, limit=2)) == 0
        assert len(list(read_records(str(tmp_path / recipe / "*.tar")))) == 2
        assert f"There is a red bicycle of number {first}" in (tmp_path / recipe / "gallery.html").read_text()
        assert "2 pictures" in capsys.readouterr().out
        assert len(loaded[model].asked) == 2 + (recipe == "hq-clip")  # one request is repeated


class Chatty(Writer):
    """Answers are no JSON for keys with 3 at first and for keys with 4 always; for keys with 6 they lack a field."""

    def answer(self, sampling, number):
        text, draws = super().answer(sampling, number), sum(key.endswith(str(number)) for key, *_ in self.asked)
        if number == 4 or number == 3 and draws == 1:
            return text[: len(text) // 2]
        return text.replace('"negative_tags"', '"others"') if number == 6 else text


def test_answers_that_are_no_json_are_asked_for_anew_and_then_fall_back(loaded, folder, tmp_path):
    loaded["m"] = Chatty("m", looks=True)
    assert run(configure(folder, tmp_path / "out", recipe="hq-clip", model="m", redraws=2)) == 0
    names = ["syn_text_hq", "neg_text_hq", "tags_hq", "neg_tags_hq"]
    records = {
        int(re.search(r"\d", record.key)[0]): record for record in read_records(str(tmp_path / "out" / "*.tar"))
    }
    numbers_asked = [int(re.search(r"\d", key)[0]) for key, *_ in loaded["m"].asked]
    assert [numbers_asked.count(number) for number in range(7)] == [1, 2, 3, 2, 3, 0, 3]
    assert all(records[3].columns[name] for name in names)
    assert records[4].columns == {"syn_text_hq": records[4].captions}
    assert records[4].scores["syn_text_hq"]["flags"] == ["fallback:text"]
    for name in names[1:]:
        [why] = records[4].scores[name]["flags"]
        assert why.startswith("no caption passed: unparsed '```json") and records[4].scores[name]["logprob"] == []
    assert "unparsed" in records[6].error and records[6].image is None  # it has no text to fall back to


def test_a_record_says_that_a_list_of_tags_was_empty(folder, loaded, tmp_path):
    class Nothing(Writer):
        def answer(self, sampling, number):
            return json.dumps({"seen": f"There is a bicycle of number {number} near the house.", "tags": []})

    loaded["m"] = Nothing("m", looks=True)
    fields = {"seen": "syn_text_m", "tags": "tags_m"}
    asked = {"instruction": "What is here?", "answer": "json", "fields": fields, "num_captions": 1}
    assert run(configure(folder, str(tmp_path / "out"), model="m", **asked)) == 0
    scores = [record.scores["tags_m"]["flags"] for record in read_records(str(tmp_path / "out")) if not record.error]
    assert len(scores) > 3 and all(flags == ["the answer lists none"] for flags in scores)


def test_the_card_tells_what_was_written_and_what_of_it_is_false(folder, loaded, tmp_path, capsys):
    """Columns of one answer share their settings, the instruction is shown as written, and tags are not measured."""
    assert run(configure(folder, tmp_path / "out", recipe="hq-clip", model="m")) == 0
    printed = capsys.readouterr().out
    assert "5 captions in neg_text_hq" in printed and "10 tags in tags_hq" in printed
    card = (tmp_path / "out" / "README.md").read_text("utf-8").replace("\\_", "_")
    assert "hq, tags_hq, neg_tags_hq: written by m from the picture and words; the instruction" in card
    assert "The texts in neg_text_hq, neg_tags_hq are meant to be false" in card
    assert 'json.loads(sample["json"])["caption_fields"]  # [\'neg_text_hq\', ' in card
    spread = card.partition("## Spread")[2].partition("## Licences")[0]
    assert "| neg_text_hq |" in spread and "| tags_hq |" not in spread and "| neg_tags_hq |" not in spread
    settings = card.partition("## Settings")[2]
    assert settings.count("captioner: m") == 1 and '\n          "tags": five to ten short names' in settings


def test_records_without_an_answer_are_told_of_with_a_reason(folder, loaded, tmp_path, capsys):
    assert run(configure(folder, tmp_path / "out", model="w", text_only=True, instruction="{{ text }}")) == 0
    assert "syn_text_w: no answer for 1 of the records, such as bike/p 6: instruction: the record has no text" in (
        capsys.readouterr().out
    )


def test_what_a_captioner_cannot_be_asked_is_told_before_any_work(folder, loaded, tmp_path):
    for options, problem in [
        ({"model": "w"}, "w needs one; give it with --instruction"),
        ({"model": "m", "text_only": True}, "m needs one; give it with --instruction"),
        ({"model": "m", "text_only": True, "instruction": "Rewrite {text}"}, "'Rewrite {text}' is the same for every"),
        ({"model": "coca", "instruction": "{{ text }}"}, "coca takes none"),
        ({"model": "coca", "text_only": True}, "coca needs a picture"),
        (
            {"model": "w", "column": "syn_text_a", "instruction": "{{ syn_text_z }}"},
            "syn_text_z.*no columns of captions",
        ),
        ({"model": "w", "column": "syn_text_a", "instruction": "{{ text }}", "fallback": ["tags_z"]}, "tags_z"),
        ({"model": "w", "instruction": "{{ text }} {{ syn_text_w }}"}, "reads syn_text_w"),
        ({"model": "w", "instruction": "{{ syn_text_z }}"}, "reads syn_text_z, which is neither made earlier"),
        (
            {"model": "w", "instruction": "{{ key }} {{ json.typo }}"},
            "none of the first 100 records of the input has what .*no such value as typo; .* has json.uid",
        ),
        (
            {"model": "w", "instruction": "{{ text }}{{ examples }}", "examples": "tesre"},
            "examples: tesre.*pairs are in a .txt file.*rich and terse come with capsmith",
        ),
        ({"recipe": "idea", "model": "m", "label": "folder", "export_by_class": str(folder)}, "no export of ours"),
        (
            {"recipe": "idea", "model": "m", "label": "folder", "export_by_class": str(tmp_path / "out")},
            "the output's",
        ),
    ]:
        with pytest.raises(ValueError, match=problem):
            run(configure(folder, tmp_path / "out", **options))
        assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_another_template_or_other_examples_are_another_run(folder, loaded, tmp_path):
    (tmp_path / "e.txt").write_text("a => b", "utf-8")
    options = {"recipe": "laclip", "model": "w", "examples": str(tmp_path / "e.txt")}
    assert run(configure(folder, tmp_path / "out", **options)) == 0
    assert run(configure(folder, tmp_path / "out", **options)) == 0
    with pytest.raises(ValueError, match="task.instruction"):
        run(configure(folder, tmp_path / "out", **options, instruction="{{ text }} {{ examples }}"))
    (tmp_path / "e.txt").write_text("a => c", "utf-8")
    with pytest.raises(ValueError, match="task.examples_sha256"):
        run(configure(folder, tmp_path / "out", **options))


def test_a_column_of_the_input_is_read_and_one_that_lacks_it_says_so():
    records = [Record("0", None, ("x",), columns={"syn_text_a": ("a red bicycle",)}), Record("3", None, ("x",))]
    column = SettledColumn("syn_text_b", Writer("w"), task=Task("{{ syn_text_a }}", text_only=True))
    first, second = caption_samples(records, [column])
    assert (
        first.columns["syn_text_a"] == ("a red bicycle",) and len(first.columns["syn_text_b"]) == 1
    )  # five captions are equal
    assert second.error == "syn_text_b: instruction: the record has no syn_text_a"


def test_columns_that_follow_see_what_passed_and_what_was_drawn_anew():
    """The first column's answer for key 1 passes at the second draw, and key 2's falls back."""
    first, second = Writer("first"), Writer("second")
    records = [Record(key, None, (f"a dog runs on grass {key}",)) for key in "0123"]
    columns = [
        SettledColumn("syn_text_a", first, task=Task("{{ text }}", text_only=True, fallback=("text",))),
        SettledColumn("syn_text_b", second, task=Task("[{{ syn_text_a }}]", text_only=True, fallback=("syn_text_a",))),
    ]
    written = list(caption_samples(records, columns))
    instructions = {key: instruction for key, _, instruction in second.asked}
    assert instructions["2"] == "[a dog runs on grass 2]"
    assert instructions["1"] == "[There is a red bicycle of number 1 near the house.]"
    assert written[2].columns["syn_text_b"] == ("a dog runs on grass 2",)
    assert written[2].scores["syn_text_b"]["flags"] == ["fallback:syn_text_a"]


def test_negatives_by_rules_stand_beside_captions_and_a_record_without_any_is_good(tmp_path):
    captions = {"0": "two red dogs run on the grass", "1": "hm", "2": ""}
    rows = [{"key": key, "caption": caption} for key, caption in captions.items()]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    config = configure(tmp_path / "t.jsonl", tmp_path / "out", model="rules:negatives", num_captions=2, format="jsonl")
    assert run(config) == 0
    good, without, failed = read_records(str(tmp_path / "out" / "*.jsonl"))
    assert len(good.columns["neg_text_rules"]) == 2 and good.captions[0] not in good.columns["neg_text_rules"]
    assert all(flags.startswith("kind:") for flags in good.scores["neg_text_rules"]["flags"])
    assert (without.error, without.captions, list(without.columns)) == ("", ("hm",), [])
    assert without.scores["neg_text_rules"]["flags"] == [NOTHING]
    assert "the record has no text" in failed.error
    with pytest.raises(ValueError, match="writes negatives"):
        configure(tmp_path / "t.jsonl", tmp_path / "out", model="rules:negatives", column="syn_text_x")


@pytest.mark.parametrize("recipe, chat", [("laclip", None), ("tulip", CHAT)])
def test_a_tiny_language_model_rewrites_a_table_killed_and_resumed(recipe, chat, tmp_path, monkeypatch, files):
    """Its answers are nonsense, so captions fall back; the rows of two tables are two shards."""
    if recipe == "tulip":
        pytest.importorskip("llguidance", reason="JSON by construction is an extra")
    model = str(save(tmp_path / "model", "llama", chat=chat, max_position_embeddings=1024))
    for name, captions in (("a", ["a red bicycle", "two dogs on grass", ""]), ("b", ["a man\nreads a book"])):
        rows = [json.dumps({"key": f"{name}{number}", "caption": caption}) for number, caption in enumerate(captions)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), "utf-8")
    config = GenerateConfig(
        **{
            "input": [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")],
            "output": tmp_path / "out",
            "device": "cpu",
        },
        **{"recipe": recipe, "model": model, "max_error_rate": 1, "batch_size": 2, "max_length": 24, "redraws": 1},
    )
    assert run(config) == 0
    records = {record.key: record for record in read_records(str(tmp_path / "out" / "*.tar"))}
    assert sorted(records) == ["a0", "a1", "a2", "b0"] and "the record has no text" in records["a2"].error
    column = f"syn_text_{recipe}"
    for record in (records[key] for key in ("a0", "a1", "b0")):
        assert record.columns[column] and len(record.scores[column]["flags"]) == 1
        if record.scores[column]["flags"] == ["fallback:text"]:
            assert record.columns[column] == record.captions
    kill_and_resume(config, tmp_path, files, monkeypatch=monkeypatch, after=3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folders of tiny models with room for every recipe's words: one that looks at pictures, one that does not."""
    places = {name: tmp_path_factory.mktemp("tiny") / name for name in ("vlm", "llm")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vlm_models.LLAMA, "max_position_embeddings", 1024)
        model, processor = vlm_models.make_model_and_processor("llava")
    vlm_models.scramble(model)
    model.generation_config.eos_token_id = vlm_models.ENDS
    model.save_pretrained(places["vlm"])
    processor.save_pretrained(places["vlm"])
    save(places["llm"], "llama", chat=CHAT, max_position_embeddings=1024)
    return {name: str(place) for name, place in places.items()}


@pytest.mark.parametrize("recipe", ["hq-clip", "recaption", "veclip"])
def test_tiny_models_that_look_at_pictures_killed_and_resumed(recipe, tiny, folder, tmp_path, monkeypatch, files):
    """Their answers are nonsense, so captions fall back, or the record says why it has none."""
    models = {"model": "coca_tiny", "text_model": tiny["llm"]} if recipe == "veclip" else {"model": tiny["vlm"]}
    options = {"batch_size": 2, "max_length": 40 if recipe == "hq-clip" else 24, "redraws": 1}
    config = configure(folder, tmp_path / "out", recipe=recipe, **models, **options)
    assert run(config) == 0
    records = {
        int(re.search(r"\d", record.key)[0]): record for record in read_records(str(tmp_path / "out" / "*.tar"))
    }
    assert sorted(records) == [*range(7)] and "picture" in records[5].error
    column = {"hq-clip": "syn_text_hq", "recaption": "syn_text_recap"}.get(recipe, f"syn_text_{recipe}")
    for record in (records[number] for number in range(5)):
        assert record.columns.get(column) or "no caption passed" in record.error
        if record.scores.get(column, {}).get("flags") == ["fallback:text"]:
            assert record.columns[column] == record.captions
    kill_and_resume(config, tmp_path, files, monkeypatch=monkeypatch, after=5)


@pytest.mark.parametrize(
    "recipe, looks",
    [("laclip", False), ("tulip", False), ("hq-clip", True), ("recaption", True), ("veclip", False)],
)
def test_a_recipe_by_a_server(recipe, looks, folder, tmp_path, capsys):
    """The server refuses number 2 whatever the seed; pictures are sent where the recipe's column looks at them."""
    server, writer = FakeServer(), Writer("w")

    def answer(request, picture):
        messages = json.dumps(request["messages"] if request else "")
        if not (number := re.search(r"at the house", messages) and re.search(r"no\. (\d) at the house", messages)):
            return None  # the probe, and records without a text
        requests.append((int(number[1]), "image_url" in messages))
        schema = json.dumps(request["response_format"]) if "response_format" in request else ""
        sampling = SimpleNamespace(answer="json" if schema else "text", json_schema=schema.replace('\\"', '"'))
        text = SORRY if number[1] == "2" else writer.answer(sampling, int(number[1]))
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return 200, {"object": "chat.completion", "choices": [choice]}

    requests: list[tuple[int, bool]] = []
    server.spoil = answer
    config = configure(folder, tmp_path / "out", recipe=recipe, model=server.model)
    if recipe == "veclip":  # the same model captions, and then rewrites
        config = configure(folder, tmp_path / "out", recipe=recipe, model=server.model, text_model=server.model)
    assert run(config) == 0
    assert f"{'pictures' if looks else 'words alone'} are sent to http://127.0.0.1" in capsys.readouterr().out
    server.shutdown()
    server.server_close()
    records = {
        int(re.search(r"\d", record.key)[0]): record for record in read_records(str(tmp_path / "out" / "*.tar"))
    }
    column, fallback = next(iter(RECIPES[recipe][1])), "text"
    if recipe == "veclip":
        column, fallback = "syn_text_veclip", "syn_text_visual"
    assert {picture for _, picture in requests} == {looks}
    assert [number for number, _ in requests].count(2) == 3  # with redraws
    assert records[0].columns[column] == ("There is a red bicycle of number 0 near the house.",)
    assert records[2].scores[column]["flags"] == [f"fallback:{fallback}"]
    assert all(records[number].columns.get(name) for name in RECIPES[recipe][1] for number in (0, 1, 3, 4))


def test_a_server_is_told_the_class_of_each_picture(folder, tmp_path):
    server, classes = FakeServer(), []

    def answer(request, picture):
        if match := request and re.search(r"This picture shows: ([\w ]+)\.", json.dumps(request["messages"])):
            classes.append(match[1])
            text = f"Here is the caption: A {match[1]} stands in front of the house."
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return 200, {"object": "chat.completion", "choices": [choice]}
        return None

    server.spoil = answer
    assert run(configure(folder, tmp_path / "out", recipe="idea", model=server.model, label="folder")) == 0
    server.shutdown()
    server.server_close()
    records = list(read_records(str(tmp_path / "out" / "*.tar")))
    assert {*classes} == {"a bike", "bike"} and len(records) == 7
    captions = {record.columns["syn_text_idea"][0] for record in records if not record.error}
    assert captions == {f"A {name} stands in front of the house." for name in {*classes}}
    assert sum(bool(record.error) for record in records) == 1


# ---- IDEA's files ---------------------------------------------------------------------------------------------------


def test_captions_by_class_stand_in_a_file_each(folder, loaded, tmp_path, capsys):
    options = {"recipe": "idea", "model": "m", "label": "folder", "export_by_class": str(tmp_path / "idea")}
    assert run(configure(folder, tmp_path / "out", **options)) == 0
    text = "There is a red bicycle of number {} near the house."
    lines = [f"a%20bike/p%20{number}.jpg {text.format(number)}" for number in (0, 1, 3)]
    assert (tmp_path / "idea" / "a bike.txt").read_text("utf-8").splitlines() == lines
    assert (tmp_path / "idea" / "bike.txt").read_text("utf-8").count("\n") == 2
    assert "5 captions of 2 classes" in capsys.readouterr().out
    (tmp_path / "idea" / "bike.txt").unlink()
    assert run(configure(folder, tmp_path / "out", **options)) == 0  # the same command again, on the finished set
    assert sorted(path.name for path in (tmp_path / "idea").iterdir()) == [
        ".capsmith-export.json",
        "a bike.txt",
        "bike.txt",
    ]
