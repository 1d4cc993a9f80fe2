"""Instructions: templates over a record, what is drawn for them, and which tasks are refused before any work."""

import json
import time

import pytest
from pydantic import ValidationError

from generate.captions.config import GenerateConfig
from generate.captions.examples import SHIPPED, Pair, draw_pairs, hash_of_pairs, read_pairs
from generate.captions.tasks import Task, TaskConfig, problems_of_order
from generate.captions.templates import Template
from imagetext.limits import INSTRUCTION, TEMPLATE_STEPS
from imagetext.sample import Record

NEEDED = {"input": ["a.tar"], "model": "m", "output": "out"}


def instruct(source: str, record: Record, column: str = "syn_text_x", seed: int = 0, **task) -> str | None:
    return Task(source, **task).instruct(record, {}, column=column, seed=seed).instruction


RECORD = Record(
    "k",
    None,
    ("a dog runs", "  ", "the dog\nruns"),
    columns={"syn_text_a": ("one",), "tags_a": ("dog", "grass")},
    label="Golden_Retriever",
    meta={"site": {"name": "x.org"}, "stars": 4, "none": None, "list": [1, "é"], "nan": float("nan")},
)


@pytest.mark.parametrize(
    "source, expected",
    [
        ("{{ key }}: {{ texts | length }} {{ texts[0] }}", "k: 2 a dog runs"),
        ("{{ texts[1] | oneline }}|{{ texts[-1] | first_words(2) }}", "the dog runs|the dog"),
        ("{{ syn_text_a }} {{ tags_a | join(', ') }}", "one dog, grass"),
        ("{{ label | replace('_', ' ') | lower }}", "golden retriever"),
        ("{{ json.site.name }} {{ json['stars'] }} {{ json.list }}", 'x.org 4 [1, "é"]'),
        ("{{ json.none | default('-') }}{{ json.nan | default('-') }}{{ json.no | default('-') }}", "---"),
        ("{% if syn_text_b is defined %}{{ syn_text_b }}{% else %}no{% endif %}", "no"),
        (
            "{% for t in tags_a %}\n{{ loop.index }}. {{ t }}{{ ';' if not loop.last else '.' }}\n{% endfor %}",
            "1. dog;\n2. grass.\n",
        ),
        ("{% set both = texts[0] ~ ' ' ~ key %}{{ both | upper }}", "A DOG RUNS K"),
        ("{{ '<b>' }}{{ texts[0] | tojson }}\n", '<b>"a dog runs"'),
    ],
)  # fmt: skip
def test_a_template_says_what_stands_in_the_record(source, expected):
    assert instruct(source, RECORD) == expected


@pytest.mark.parametrize(
    "source, reason",
    [
        ("{{ syn_text_b }}", "the record has no syn_text_b"),
        ("{{ json.no.more }}", "the record has no such value as no"),
        ("{{ json.none }}", "no such value as none"),
        ("{{ json.nan }}", "no such value as nan"),
        ("{% if label == 'a' %}{% endif %}{{ tags_b[0] }}", "the record has no tags_b"),
        ("{{ texts[7] }}", "no such value as 7"),
        ("{{ texts[0].upper }}", "no such value as upper"),
        ("{{ texts.__class__ }}", "no such value as __class__"),
        ("{{ texts[0] | first_words('x') }}", "instruction: "),
        ("{% for x in json.stars %}{% endfor %}", "instruction: "),
    ],
)
def test_what_a_record_lacks_is_the_reason(source, reason):
    with pytest.raises(ValueError, match=reason):
        instruct(source, RECORD)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10000000000 }}",
        "{{ range(10 ** 10) | list }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% for x in range(10) %}{% endfor %}",
        "{{ text.upper() }}",
        "{{ ''.__class__.__mro__ }} {{ self }}",
        "{{ text | center(10000000) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ texts | random }}",
        "{{ [text, text] }}",
        "{% macro a() %}{{ a() }}{% endmacro %}",
        "{% include '/etc/passwd' %}",
        "{% for x in texts recursive %}{% endfor %}",
        "{% set x %}{{ text }}{% endset %}",
        "{{ _steps }}",
        "{{ " + "(" * 5000 + "text" + ")" * 5000 + " }}",
        "{{ text" + " | lower" * 3000 + " }}",
        "{% for a in texts %}" * 25 + "{% endfor %}" * 25,
        "{% if text %}",
        "{{ text",
        "x" * (INSTRUCTION + 1),
        "{{ " + "9" * 5000 + " }}",
    ],
)
def test_what_is_not_bounded_is_no_template(source):
    start = time.monotonic()
    with pytest.raises(ValueError):
        Template(source)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "source",
    [
        "{% set a = text ~ text %}" + "{% set a = a ~ a %}" * 60 + "{{ a | length }}",
        "{% for a in json.many %}{% for b in json.many %}{% for c in json.many %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for a in json.many %}{% for b in json.many if b is defined %}{{ text }}{% endfor %}{% endfor %}",
        "{{ json.long | replace('', json.long) }}",
        "{{ json.many | join(json.long) }}",
        "{% set a = text | tojson %}" + "{% set a = a | tojson %}" * 60 + "{{ a }}",
        "{% for a in json.many %}{{ json.long }}{% endfor %}",
        "{{ json.huge }}",
    ],
)
def test_a_rendering_is_bounded_in_time_and_memory(source):
    record = Record("k", None, ("a",), meta={"many": list(range(9000)), "long": "ab" * 9000, "huge": "a" * 10**7})
    start = time.monotonic()
    with pytest.raises(ValueError, match="more than"):
        instruct(source, record)
    assert time.monotonic() - start < 2


def test_loops_of_few_steps_are_none_too_many():
    record = Record("k", None, ("a",), meta={"many": list(range(100))})
    source = "{% for a in json.many %}{% for b in json.many %}{% if a == b %}x{% endif %}{% endfor %}{% endfor %}"
    assert instruct(source, record) == "x" * 100
    assert TEMPLATE_STEPS < 10**6


# ---- what is drawn --------------------------------------------------------------------------------------------------

PAIRS = [Pair(f"s{i}", f"t{i}") for i in range(12)]


def test_a_caption_and_examples_are_drawn_by_seed_key_and_column_alone():
    captions = tuple(f"caption {i}" for i in range(5))
    source = "{{ text }}|{% for pair in examples %}{{ pair.source }}={{ pair.target }} {% endfor %}"

    task = Task(source, PAIRS)

    def said(key: str, column: str = "syn_text_x", seed: int = 0) -> str:
        return task.instruct(Record(key, None, captions), {}, column=column, seed=seed).instruction

    keys = [f"k{i}" for i in range(200)]
    assert [said(key) for key in keys] == [said(key) for key in keys]
    texts = [said(key).partition("|")[0] for key in keys]
    assert {texts.count(caption) for caption in captions} <= set(range(20, 65))  # 40 of each are expected, ± 4 sigma
    assert len({said(key) for key in keys}) > 185  # of 6,600
    assert sum(said(key) == said(key, "syn_text_y") for key in keys) < 5
    assert sum(said(key) == said(key, seed=1) for key in keys) < 5


def test_pairs_are_drawn_without_any_twice_and_evenly():
    draws = [draw_pairs(PAIRS, 3, f"k{i}", seed=0) for i in range(600)]
    assert all(len({*pairs}) == 3 for pairs in draws)
    first = [pairs[0] for pairs in draws]
    assert all(25 <= first.count(pair) <= 80 for pair in PAIRS)  # 50 of each are expected
    assert sorted(draw_pairs(PAIRS, 99, "k", seed=0)) == sorted(PAIRS)


def test_pairs_come_from_files_and_from_sets_with_several_captions(tmp_path):
    (tmp_path / "a.txt").write_text("a cat => A cat.\n\n b  =>  c \n", "utf-8")
    (tmp_path / "a.jsonl").write_text('{"source": "a => b", "target": "c"}\n', "utf-8")
    (tmp_path / "set.jsonl").write_text(
        '{"key": "1", "captions": ["a", "b", "a"]}\n{"key": "2", "captions": ["c"]}\n', "utf-8"
    )
    assert read_pairs(str(tmp_path / "a.txt")) == [("a cat", "A cat."), ("b", "c")]
    assert read_pairs(str(tmp_path / "a.jsonl")) == [("a => b", "c")]
    assert read_pairs(str(tmp_path / "set.jsonl")) == [("a", "b"), ("b", "a")]
    assert hash_of_pairs(PAIRS) != hash_of_pairs(PAIRS[1:])
    for place in SHIPPED:
        assert len({pair.source for pair in read_pairs(place)}) == 12
    for name, content, problem in [
        ("bad.txt", "a => b\nc d\ne => f => g\n=> h\n", "line 2.*\n.*line 3.*\n.*line 4"),
        (
            "bad.jsonl",
            '{"source": "a", "target": "b"}\n{"source": 1, "target": "b"}\n{"source": "a"}',
            "line 2.*\n.*line 3",
        ),
        ("empty.txt", "\n", "holds no pairs"),
        ("one.jsonl", '{"key": "1", "captions": ["a"]}', "no picture has two"),
    ]:  # fmt: skip
        (tmp_path / name).write_text(content, "utf-8")
        with pytest.raises(ValueError, match=problem):
            read_pairs(str(tmp_path / name))
    with pytest.raises(ValueError, match="tesre"):
        read_pairs("tesre")


def test_what_answers_are_judged_beside_comes_with_the_instruction():
    record = Record("k", None, ("a dog",), columns={"syn_text_a": ("one",)}, label="x")
    instructed = Task("{{ text }} {{ syn_text_b }} {{ label }} {{ examples[0].source }}", PAIRS).instruct(
        record, {"syn_text_b": ["two"]}, column="syn_text_x", seed=0
    )
    assert instructed.text == "two\na dog" and len(instructed.examples) == 6
    assert Task("{{ texts | join }}").instruct(Record("k", None, ("a", "b")), {}, column="c", seed=0).text == "a\nb"
    assert Task().instruct(record, {}, column="c", seed=0) == (None, "", ())


def test_a_fallback_is_the_first_that_the_record_has():
    task = Task(fallback=("syn_text_b", "syn_text_a", "text"))
    record = Record("k", None, ("a dog",), columns={"syn_text_a": ("one",)})
    assert task.fall_back(record, {"syn_text_b": ["two"]}, column="c", seed=0) == ("syn_text_b", "two")
    assert task.fall_back(record, {"syn_text_b": []}, column="c", seed=0) == ("syn_text_a", "one")
    assert task.fall_back(Record("k", None, ("a dog",)), {}, column="c", seed=0) == ("text", "a dog")
    assert task.fall_back(Record("k", None, (" ",)), {}, column="c", seed=0) is None


# ---- what is refused before any work --------------------------------------------------------------------------------

JSON = {"answer": "json", "fields": {"a": "syn_text_a", "b": "tags_a"}}


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"instruction": "{{ txt }} {{ syn_text_a }}"}, "names txt;"),
        ({"instruction": "{{ text | shuffle }}"}, "no filter shuffle"),
        ({"instruction": "@no/such/file"}, "cannot be read"),
        ({"instruction": "{{ examples }}"}, "names examples, and none are given"),
        ({"examples": "terse", "instruction": "{{ text }}"}, "does not name them"),
        ({"instruction": "{{ label }}"}, "--label"),
        ({"fields": {"a": "syn_text_a"}}, "answer is text"),
        ({"answer": "json"}, "needs --fields"),
        ({**JSON, "column": "syn_text_a"}, "goes to the columns that fields names"),
        ({"answer": "json", "fields": {"a": "captions"}}, "captions"),
        ({"answer": "json", "fields": ["a=syn_text_a", "b=syn_text_a"]}, "of two fields"),
        ({"answer": "json", "fields": ["a"]}, "no FIELD=COLUMN"),
        ({"fallback": ["txt"]}, "neither text"),
        ({"column": "syn_text_a", "fallback": ["syn_text_a"]}, "syn_text_a: reads syn_text_a"),
        ({"columns": [{"column": "syn_text_a", "instruction": "{{ tags_a }}"}, JSON]}, "named twice"),
        ({"columns": [{"column": "syn_text_b", "instruction": "{{ tags_a }}"}, JSON]}, "syn_text_b: reads tags_a"),
        ({"model": "rules:negatives", "column": "syn_text_a"}, "writes negatives"),
        ({"model": "rules:negatives", "column": "tags_a"}, "name the column neg_text_"),
        ({"model": "rules:negative"}, "there is rules:negatives"),
        ({"instruction": " "}, "is empty"),
        ({"export_by_class": "d"}, "--label"),
        ({"text_model": "m"}, "--text-model"),
        ({"recipe": "idea"}, "--label"),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_done_is_told_at_once(settings, problem):
    with pytest.raises(ValidationError, match=problem):
        GenerateConfig(**{**NEEDED, **settings})


def test_order_of_columns_with_the_names_of_captioners():
    assert problems_of_order([(["a"], []), (["b", "c"], ["a"])]) == []
    assert len(problems_of_order([(["a"], ["c", "a"]), (["b", "c"], ["a"]), (["b"], ["d"])])) == 3


def test_an_instruction_from_a_file_is_taken_as_it_stands(tmp_path):
    (tmp_path / "i.txt").write_text("Say {{ text }}\n", "utf-8")
    config = GenerateConfig(**NEEDED, instruction=f"@{tmp_path / 'i.txt'}")
    assert config.instruction == "Say {{ text }}\n" and config.task == TaskConfig(instruction="Say {{ text }}\n")
    assert GenerateConfig(**NEEDED, **JSON).task.settled() == Task(fields=JSON["fields"])
    schema = json.loads(GenerateConfig(**NEEDED, **JSON).sampling.json_schema)
    assert schema["properties"] == {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "string"}}}
    assert GenerateConfig(**{**NEEDED, "model": "rules:negatives"}).task.instruction == "{{ text }}"


def test_a_recipe_of_several_columns_stands_below_all_that_is_given():
    def columns(**settings):
        configs = GenerateConfig(**NEEDED, recipe="veclip", **settings).column_configs
        return [(config.model, config.column, config.temperature, config.pretrained) for config in configs]

    visual, fused = "syn_text_visual", "syn_text_veclip"
    assert columns() == [("m", visual, 1.0, None), ("m", fused, 0.7, None)]
    assert columns(text_model="w", pretrained="p") == [("m", visual, 1.0, "p"), ("w", fused, 0.7, None)]
    assert columns(temperature=0.4) == [("m", visual, 0.4, None), ("m", fused, 0.4, None)]
    configured = columns(columns=[{"model": "a"}, {"temperature": 0.2}])
    assert configured == [("a", visual, 1.0, None), ("m", fused, 0.2, None)]
    assert columns(columns=[{"column": "syn_text_z"}]) == [("m", "syn_text_z", 1.0, None)]
