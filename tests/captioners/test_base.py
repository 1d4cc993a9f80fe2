import subprocess
import sys

import pytest
from pydantic import ValidationError

from captioners.base import Caption, Captioned, SamplingConfig, up_to_stop


def test_defaults_are_the_papers_sampling():
    sampling = SamplingConfig()
    assert (sampling.num_captions, sampling.strategy, sampling.top_p, sampling.temperature) == (5, "sample", 0.9, 1.0)
    assert (sampling.max_length, sampling.min_length, sampling.top_k, sampling.seed) == (None, 5, None, 0)


def test_greedy_gives_one_caption_and_refuses_more():
    assert SamplingConfig(strategy="greedy").num_captions == 1
    with pytest.raises(ValidationError, match="greedy gives one caption, but num_captions is 2"):
        SamplingConfig(strategy="greedy", num_captions=2)


def test_beam_search_gives_no_more_captions_than_beams():
    assert SamplingConfig(strategy="beam", num_captions=3, num_beams=4).num_beams == 4
    with pytest.raises(ValidationError, match="at most num_beams captions, but num_captions is 3"):
        SamplingConfig(strategy="beam", num_captions=3, num_beams=2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_captions", 0), ("max_length", 2), ("min_length", -1), ("temperature", 0), ("temperature", float("inf")),
        ("top_p", 0), ("top_p", 1.1), ("top_k", 0), ("repetition_penalty", 0), ("no_repeat_ngram_size", -1),
        ("num_beams", 0), ("diversity_penalty", -1), ("seed", -1), ("seed", 2**64), ("strategy", "best"),
        ("length_penalty", float("nan")), ("no_such_field", 1),
    ],
)  # fmt: skip
def test_each_bad_value_is_refused_by_name(field, value):
    with pytest.raises(ValidationError) as caught:
        SamplingConfig(**{field: value})
    assert field in {error["loc"][0] for error in caught.value.errors()}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("min_length", {"max_length": 8, "min_length": 9}),
        ("num_beams", {"num_beams": 2}),
        ("num_beam_groups", {"strategy": "beam", "num_captions": 1, "num_beams": 4, "num_beam_groups": 3}),
        ("diversity_penalty", {"strategy": "beam", "num_captions": 1, "num_beams": 4, "diversity_penalty": 0.5}),
        ("length_penalty", {"length_penalty": 2.0}),
    ],
)
def test_values_that_contradict_each_other_are_refused(field, values):
    with pytest.raises(ValidationError) as caught:
        SamplingConfig(**values)
    assert [error["loc"][0] for error in caught.value.errors()] == [field]


def test_all_problems_come_at_once():
    with pytest.raises(ValidationError) as caught:
        SamplingConfig(num_captions=0, top_p=2, max_length=6, min_length=7, num_beams=2, typo=1)
    assert {error["loc"][0] for error in caught.value.errors()} == {
        "num_captions",
        "top_p",
        "min_length",
        "num_beams",
        "typo",
    }


def test_a_config_survives_its_dump():
    for sampling in (
        SamplingConfig(top_k=7, prefix="a photo", answer="line", stop=("###", ".")),
        SamplingConfig(strategy="greedy"),
    ):
        assert SamplingConfig(**sampling.model_dump()) == sampling


def test_configurations_are_read_without_torch():
    code = "import captioners.base, sys; assert not {'torch', 'open_clip', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_captioned_holds_captions_in_order():
    captioned = Captioned("k", (Caption("a", -1.0, False), Caption("b", -2.0, True)))
    assert [caption.text for caption in captioned.captions] == ["a", "b"]
    assert captioned.image_embedding is None
    assert captioned.captions[0].similarity is None


@pytest.mark.parametrize(
    "text, stops, expected",
    [
        ("A dog.### A cat", ("###",), "A dog."),
        ("A dog. User: B ###", ("###", "User:"), "A dog."),
        ("\n\nA dog.\nA cat", ("\n",), "\n\nA dog."),  # once something was said
        ("### A dog", ("###",), ""),
        ("A dog. ", ("###",), "A dog. "),
        ("A dog.", (), "A dog."),
    ],
)
def test_a_caption_ends_before_the_first_stop(text, stops, expected):
    assert up_to_stop(text, stops) == expected


def test_the_end_of_a_line_is_a_stop_where_a_line_is_asked_for():
    assert SamplingConfig(answer="line", stop=("#",)).stops == ("#", "\n")
    assert SamplingConfig(stop=("#",)).stops == ("#",)


@pytest.mark.parametrize(
    "values, field",
    [
        ({"stop": ("",)}, "stop"),
        ({"json_schema": "[]", "answer": "json"}, "json_schema"),
        ({"json_schema": "{", "answer": "json"}, "json_schema"),
        ({"json_schema": "{}", "answer": "line"}, "json_schema"),
    ],
)
def test_stops_and_schemas_that_cannot_be_are_refused_by_name(values, field):
    with pytest.raises(ValidationError) as caught:
        SamplingConfig(**values)
    assert [error["loc"][0] for error in caught.value.errors()] == [field]
