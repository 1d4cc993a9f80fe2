"""GenerateConfig: its own fields and those of sampling."""

import pytest
from pydantic import ValidationError

from captioners.base import SamplingConfig
from generate.captions.config import GenerateConfig
from generate.captions.gate import Gate

NEEDED = {"input": ["a.tar"], "model": "m", "output": "out"}


def test_defaults_are_those_of_the_command():
    config = GenerateConfig(**NEEDED)
    assert (
        config.num_captions,
        config.top_p,
        config.temperature,
        config.seed,
        config.format,
        config.max_error_rate,
    ) == (5, 0.9, 1.0, 0, "webdataset", 0.1)
    assert config.sampling == SamplingConfig()


def test_sampling_is_what_was_asked_for():
    settings = {
        "num_captions": 3,
        "top_p": 0.5,
        "temperature": 0.7,
        "max_length": 30,
        "min_length": 4,
        "top_k": 9,
        "seed": 8,
        "prefix": "a ",
    }
    assert GenerateConfig(**NEEDED, **settings).sampling == SamplingConfig(**settings)
    assert GenerateConfig(**NEEDED, strategy="greedy").sampling == SamplingConfig(strategy="greedy", num_captions=1)


@pytest.mark.parametrize("column", ["syn_text_x", "syn_text_coca_2"])
def test_a_column_that_names_caption_lists_is_taken(column):
    assert GenerateConfig(**NEEDED, column=column).column == column


@pytest.mark.parametrize(
    "wrong",
    [
        {"column": "captions"},
        {"column": "syn_text_"},
        {"column": "syn_text_emb"},
        {"column": "syn_text_x_captions"},
        {"column": "syn_text_X"},
        {"input": []},
        {"batch_size": 0},
        {"max_error_rate": 1.5},
        {"format": "csv"},
        {"dtype": "int8"},
        {"top_p": 0},
        {"nonsense": 1},
    ],
)
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValidationError) as caught:
        GenerateConfig(**{**NEEDED, **wrong})
    assert [error["loc"][0] for error in caught.value.errors()] == list(wrong)


def test_a_recipe_is_below_what_is_given():
    config = GenerateConfig(**NEEDED, recipe="dfndr", top_p=0.7)
    assert (config.num_captions, config.max_length, config.temperature, config.top_p) == (5, 30, 1.0, 0.7)
    assert config.gate == Gate(sentences="first", redraws=0, on_degenerate="keep")
    with pytest.raises(ValidationError, match="no such recipe; the recipes are dfndr"):
        GenerateConfig(**NEEDED, recipe="other")


def test_a_model_is_required_beside_all_other_problems():
    with pytest.raises(ValidationError) as caught:
        GenerateConfig(input=["a"], output="out", top_p=0)
    assert {error["loc"][0] for error in caught.value.errors()} == {"top_p", "columns"}
    assert "--model: required" in str(caught.value)


def test_columns_differ_from_what_stands_beside_the_list():
    config = GenerateConfig(
        **NEEDED,
        top_p=0.5,
        redraws=1,
        columns=[
            {},
            {"model": "other", "column": "syn_text_b", "top_p": 0.7, "on_degenerate": "keep"},
            {"column": "syn_text_c", "strategy": "greedy"},
        ],
    )
    first, second, third = config.column_configs
    assert (first.model, first.column, first.top_p, first.gate) == ("m", None, 0.5, Gate(redraws=1))
    assert (second.model, second.column, second.sampling.top_p, second.gate) == (
        "other",
        "syn_text_b",
        0.7,
        Gate(redraws=1, on_degenerate="keep"),
    )
    assert third.sampling == SamplingConfig(strategy="greedy", num_captions=1, top_p=0.5)
    [alone] = GenerateConfig(**NEEDED, seed=3).column_configs
    assert (alone.model, alone.sampling) == ("m", SamplingConfig(seed=3))


BEAMS = {"strategy": "beam", "num_beams": 5}
REWRITE = {"instruction": "Rewrite: {{ text }}"}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"strategy": "greedy", "temperature": 0.7, "top_p": 0.5, "top_k": 5}, ["temperature", "top_p", "top_k"]),
        ({**BEAMS, "top_k": 5, "redraws": 3}, ["top_k", "redraws"]),
        ({**BEAMS, "redraws": 0}, []),
        ({"must_change": True, "keep_facts": True, "min_overlap": 0.5}, ["must_change", "keep_facts", "min_overlap"]),
        ({"must_change": True, "keep_facts": True, **REWRITE}, []),
        ({"must_change": True, "instruction": "Describe the {{ json.place }}."}, ["must_change"]),
        ({"min_overlap": 0.5, "column": "neg_text_x", **REWRITE}, []),
        ({"model": "rules:negatives", "temperature": 0.5, "fallback": ["text"]}, ["temperature", "fallback"]),
        ({"fallback": ["text"]}, []),
        ({"num_examples": 5}, ["num_examples"]),
        ({"temperature": 0.7, "columns": [{"column": "syn_text_a"}, {"strategy": "greedy"}]}, []),
        ({"columns": [{"column": "syn_text_a"}, {"strategy": "greedy", "temperature": 0.7}]}, ["temperature"]),
        ({"recipe": "recaption", "strategy": "greedy"}, []),
    ],
)
def test_settings_without_effect_are_told(settings, names):
    """Except those that another column uses, or that a recipe brings."""
    warnings = GenerateConfig(**NEEDED | settings).warnings_of_unused_settings
    assert [warning.split()[0] for warning in warnings] == [f"--{name.replace('_', '-')}" for name in names]


@pytest.mark.parametrize("records", [{"format": "jsonl"}, {"captions_only": True}])
def test_a_text_is_asked_for_only_where_records_have_one(records):
    with pytest.raises(ValidationError, match="--text-from-synthetic: writes `txt`"):
        GenerateConfig(**NEEDED | {"text_from_synthetic": True} | records)


def test_every_problem_of_the_columns_is_told_with_its_place():
    with pytest.raises(ValidationError) as caught:
        GenerateConfig(
            input=["a"],
            output="out",
            columns=[
                {"model": "m", "column": "syn_text_a", "temperature": -1, "nonsense": 2},
                {"column": "syn_text_a"},
                {"model": "m", "column": "captions"},
            ],
        )
    [error] = caught.value.errors()
    problems = error["msg"].removeprefix("Value error, ").split("; ")
    assert [problem.partition(": ")[0] for problem in problems] == [
        "columns[0].temperature",
        "columns[0].nonsense",
        "columns[1]",
        "columns[2].column",
        "columns",
    ]
    assert "has no model" in problems[2] and "(--model)" in problems[2] and "syn_text_a is named twice" in problems[4]


def test_a_name_that_no_column_of_the_list_takes_is_refused():
    columns = [{"column": "syn_text_a"}, {"temperature": 0.5}]
    assert [column.column for column in GenerateConfig(**NEEDED, column="syn_text_x", columns=columns).columns] == [
        "syn_text_a",
        "syn_text_x",
    ]
    with pytest.raises(ValueError, match="--column syn_text_x: is the name of no column in the list"):
        GenerateConfig(**NEEDED, column="syn_text_x", columns=columns[:1])


@pytest.mark.parametrize("model, name", [("coca_tiny", "prefix"), ("openai:http://localhost:8000#m", "instruction")])
def test_a_prompt_is_what_it_meant_and_told_of(model, name, caplog):
    """With a list of columns, each column takes it according to its own model."""
    needed = {name: value for name, value in NEEDED.items() if name != "model"}
    alone = GenerateConfig(**needed, model=model, prompt="A dog")
    assert getattr(alone, name) == "A dog" and "prompt" not in alone.model_dump()
    assert caplog.messages == [f"--prompt is called --{name} now; version 0.3 will not accept the old name"]
    columns = GenerateConfig(**needed, prompt="A dog", columns=[{"model": model, "column": "syn_text_x"}]).columns
    assert [getattr(column, name) for column in columns] == ["A dog"]
    assert GenerateConfig(**needed, model=model, prompt="") == GenerateConfig(**needed, model=model)
    with pytest.raises(ValueError, match=f"prompt: is the old name of {name}, and both are given"):
        GenerateConfig(**needed, model=model, prompt="A dog", **{name: "A cat"})


def test_a_problem_of_a_whole_column_does_not_print_all_its_fields():
    columns = [{"model": "rules:negatives", "column": "syn_text_a", "instruction": "one of many fields"}]
    with pytest.raises(ValidationError, match=r"columns\[0\]: column: syn_text_a: rules:negatives writes negatives"):
        GenerateConfig(input=["a.tar"], output="out", columns=columns)
