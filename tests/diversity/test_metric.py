"""The measures as `evaluate` metrics: loaded by path, offline, with the numbers of `score_captions`."""

import evaluate
import pytest

from diversity import METRIC, score_captions
from diversity.metric import AGAINST_REFERENCES, NAMES

CAPTIONS = [["a red dog runs", "a dog on grass"], ["two cats sit here", "two cats sit on a mat"]]
HUMAN = [["a red dog runs on grass"], ["two cats on a mat"]]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path / "modules"))


def load(name):
    return evaluate.load(METRIC, name, experiment_id=name)


def test_a_metric_gives_the_number_of_its_measure():
    row = score_captions({"a": CAPTIONS}).rows["a"]
    for name in ("div_2", "self_cider", "equal_tokens_distinct_1", "degenerate"):
        assert load(name).compute(predictions=CAPTIONS) == {name: NAMES[name].value(row)}


def test_measures_against_references_take_them_and_the_others_refuse_them():
    row = score_captions({"predictions": CAPTIONS}, references=HUMAN).rows["predictions"]
    assert load("cider_d").compute(predictions=CAPTIONS, references=HUMAN) == {"cider_d": row["cider_d"]}
    with pytest.raises(ValueError, match="references: div_2 takes none"):
        load("div_2").compute(predictions=CAPTIONS, references=HUMAN)
    with pytest.raises(ValueError, match="references: cider_d .* none were given"):
        load("cider_d").compute(predictions=CAPTIONS)


@pytest.mark.parametrize("without", range(3))
def test_a_picture_that_cannot_be_measured_is_named_wherever_it_is_in_the_sample(without):
    human = [*HUMAN, ["a horse"]]
    human[without] = ["..."]
    result = load("cider_d").compute(predictions=[*CAPTIONS, ["a horse", "a grey horse"]], references=human)
    assert result["left_out"] == [without]


def test_batches_add_up():
    metric = load("mbleu_4")
    for group in CAPTIONS:
        metric.add(predictions=group)
    assert metric.compute() == load("mbleu_4").compute(predictions=CAPTIONS)


def test_the_default_gives_all_that_need_no_references():
    result = load("default").compute(predictions=CAPTIONS)
    assert result.keys() == NAMES.keys() - AGAINST_REFERENCES
    assert result["captions"] == 4


def test_an_unknown_measure_is_named():
    with pytest.raises(ValueError, match="'nothing': there is no such measure; choose from pictures"):
        load("nothing")
