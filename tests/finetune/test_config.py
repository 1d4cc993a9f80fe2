import pytest
from pydantic import ValidationError

from finetune.captioner.config import FinetuneConfig

GIVEN = {"input": ["x"], "model": "coca_tiny", "output": "out"}


@pytest.mark.parametrize(
    "text, number", [("12M", 12_000_000), ("1.5k", 1500), ("2B", 2_000_000_000), ("640", 640), (7, 7)]
)
def test_samples_seen_reads_suffixes(text, number):
    assert FinetuneConfig(**GIVEN, samples_seen=text).samples_seen == number


def test_all_problems_of_a_configuration_are_told_at_once():
    with pytest.raises(ValidationError) as error:
        FinetuneConfig(**GIVEN, samples_seen="many", name="my_embedder", batch_size=0, colour="red")
    assert {detail["loc"][0] for detail in error.value.errors()} == {"samples_seen", "name", "batch_size", "colour"}


@pytest.mark.parametrize(
    "settings, field",
    [({"caption_weight": 0, "contrastive_weight": 0}, "contrastive_weight"), ({"weights": [float("inf")]}, "weights")],
)
def test_what_nothing_could_be_learned_from_is_refused(settings, field):
    with pytest.raises(ValidationError) as error:
        FinetuneConfig(**GIVEN, **settings)
    assert [detail["loc"][0] for detail in error.value.errors()] == [field]
