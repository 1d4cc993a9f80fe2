"""GenerateConfig: its own fields and those of sampling."""

import pytest
from pydantic import ValidationError

from captioners.base import SamplingConfig
from generate.config import GenerateConfig

NEEDED = {"input": ["a.tar"], "model": "m", "output": "out"}


def test_defaults_are_those_of_the_command():
    config = GenerateConfig(**NEEDED)
    assert (config.num_captions, config.top_p, config.temperature, config.seed, config.format, config.max_error_rate) == (
        5, 0.9, 1.0, 0, "webdataset", 0.1)
    assert config.sampling == SamplingConfig()


def test_sampling_is_what_was_asked_for():
    asked = {"num_captions": 3, "top_p": 0.5, "temperature": 0.7, "max_length": 30, "min_length": 4, "top_k": 9, "seed": 8,
             "prompt": "a "}
    assert GenerateConfig(**NEEDED, **asked).sampling == SamplingConfig(**asked)
    assert GenerateConfig(**NEEDED, strategy="greedy").sampling == SamplingConfig(strategy="greedy", num_captions=1)


@pytest.mark.parametrize("column", ["syn_text_x", "syn_text_coca_2"])
def test_a_column_that_names_caption_lists_is_taken(column):
    assert GenerateConfig(**NEEDED, column=column).column == column


@pytest.mark.parametrize("wrong", [
    {"column": "captions"}, {"column": "syn_text_"}, {"column": "syn_text_emb"}, {"column": "syn_text_x_captions"},
    {"column": "syn_text_X"}, {"input": []}, {"batch_size": 0}, {"max_error_rate": 1.5}, {"format": "csv"}, {"dtype": "int8"},
    {"top_p": 0}, {"nonsense": 1}])
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValidationError) as caught:
        GenerateConfig(**{**NEEDED, **wrong})
    assert [error["loc"][0] for error in caught.value.errors()] == list(wrong)
