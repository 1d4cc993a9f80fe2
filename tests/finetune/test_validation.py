"""Validation: scores in closed form, no change of the captioner, a warning if it no longer looks."""

import pytest
import torch
from PIL import Image

from captioners.base import Caption, Captioned, SamplingConfig
from captioners.load import load_captioner
from diversity.measures.accumulate import CaptionAccumulator
from diversity.measures.references import reference_scores
from finetune.validation import caption_scores, collapse_warning, evenly_spaced, human_scores, validate
from imagetext.sample import decode_image
from imagetext.sources import read_samples

HUMAN = [
    ["a red cat sleeps on a mat", "a cat on a mat"],
    ["two dogs run over wet sand", "dogs run"],
    ["one man rides his old bike", "a man rides"],
]


class Scripted:
    """A captioner whose greedy captions and samples for each picture come from a dictionary."""

    name, weights_sha256, description, batch_size = "scripted", "0" * 64, "a captioner of the tests", 1
    looks_at_pictures = needs_picture = True
    takes_instruction = needs_instruction = False

    def __init__(self, greedy, samples):
        self.greedy, self.samples, self.asked = greedy, samples, []

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        raise NotImplementedError("its pictures are numbers")

    def bytes_per_picture(self, sampling: SamplingConfig) -> int:
        return 1

    def check(self, sampling, *, similarity=False):
        pass

    def caption(self, requests, sampling, *, column="", first_index=0, similarity=False, batch_size=None):
        self.asked.append((sampling, similarity))
        for key, pixels, _ in requests:
            texts = [self.greedy[key]] if sampling.strategy == "greedy" else self.samples[key][: sampling.num_captions]
            yield Captioned(
                key,
                tuple(
                    Caption(text, -1.0, text.endswith("…"), float(pixels) if similarity else None) for text in texts
                ),
            )


def pictures(human=HUMAN):
    return [(f"p{index}", torch.tensor(index / 10), texts) for index, texts in enumerate(human)]


def scripted(greedy, samples):
    return Scripted(dict(zip(("p0", "p1", "p2"), greedy)), dict(zip(("p0", "p1", "p2"), samples)))


def test_the_most_probable_caption_is_compared_and_samples_measured():
    greedy = [texts[0] for texts in HUMAN]
    samples = [
        ["a cat is here", "a cat is here"],
        ["two dogs run on", "two dogs run…"],
        ["one man rides on", "a man and a"],
    ]
    captioner = scripted(greedy, samples)
    validation = validate(
        captioner, pictures(), SamplingConfig(num_captions=2, max_length=20, min_length=3, prefix="a")
    )
    assert validation.scores | {"meteor": 0} == {
        "pictures": 3,
        **reference_scores(greedy, HUMAN),
        "meteor": 0,
        "similarity": pytest.approx(0.1),
        "distinct_1": pytest.approx(12 / 23),
        "distinct_2": pytest.approx(12 / 17),
        "degenerate": pytest.approx(2 / 6),
        "mbleu_4": pytest.approx(mbleu(samples)),
        "same_caption": pytest.approx(1 / 3),
    }
    (best, similar), (sampling, _) = captioner.asked
    assert similar and (best.strategy, best.max_length, best.min_length, best.prefix) == ("greedy", 20, 3, "a")
    assert sampling.strategy == "sample"
    assert validation.examples == {f"p{index}": [greedy[index], *samples[index]] for index in range(3)}
    assert validation.warning == ""


def mbleu(groups):
    accumulator = CaptionAccumulator()
    accumulator.update(groups)
    return accumulator.result()["mbleu_4"]


def test_five_samples_of_top_p_09_unless_told_otherwise():
    captioner = scripted([texts[0] for texts in HUMAN], [texts * 3 for texts in HUMAN])
    validate(captioner, pictures())
    assert (captioner.asked[1][0].num_captions, captioner.asked[1][0].top_p) == (5, 0.9)


def test_a_captioner_without_a_common_embedding_is_not_asked_for_similarity():
    captioner = scripted([texts[0] for texts in HUMAN], [texts * 3 for texts in HUMAN])
    assert "similarity" not in validate(captioner, pictures(), similarity=False).scores
    assert [similar for _, similar in captioner.asked] == [False, False]


def test_pictures_without_human_captions_are_not_compared():
    described = caption_scores(["a cat on a mat", "two dogs run on"], [["a", "b"]] * 2, [HUMAN[0], HUMAN[1]])
    with_another = caption_scores(
        ["a cat on a mat", "x", "two dogs run on"], [["a", "b"]] * 3, [HUMAN[0], ["", "..."], HUMAN[1]]
    )
    assert with_another["cider_d"] == described["cider_d"] > 0
    assert with_another["pictures"] == 3
    none = caption_scores(["a cat", "b"], [["a"], ["b"]], [[], []])
    assert set(none) == {
        "pictures",
        "distinct_1",
        "degenerate",
        "same_caption",
    }  # one sample: no mBLEU; one word: no 2-gram
    assert human_scores([[], ["!"]], 2) == {}


def test_human_captions_are_measured_alike():
    assert human_scores(HUMAN, 3).keys() == {"degenerate", "same_caption"}
    human = human_scores([[*texts, "one more"] for texts in HUMAN], 2)
    assert human["mbleu_4"] == pytest.approx(mbleu(HUMAN)) and human["same_caption"] == pytest.approx(1 / 3)
    assert human_scores([["A cat.", "x"], ["a cat", "y"], ["a dog", "a cat"]], 2)["same_caption"] == pytest.approx(
        2 / 3
    )


@pytest.mark.parametrize(
    "share, pictures, human, warns",
    [
        (0.2, 100, 0.01, True),
        (0.19, 100, 0.01, False),
        (0.2, 100, 0.07, False),
        (0.31, 100, 0.1, True),
        (0.8, 5, 0.2, False),
        (1.0, 5, 0.2, True),
        (1.0, 4, 0.2, False),
    ],
)
def test_collapse_is_a_share_far_above_the_human_one(share, pictures, human, warns):
    warning = collapse_warning({"same_caption": share, "pictures": pictures}, {"same_caption": human})
    assert bool(warning) == warns
    if warns:
        assert f"{share:.0%} of {pictures} held-out pictures get the same caption" in warning
        assert f"(of the human captions, {human:.0%} are the same)" in warning
        for check in ("--learning-rate", "--caption-weight", "--from-scratch", "--pretrained", "#797", "#751", "data"):
            assert check in warning


def test_a_captioner_that_says_the_same_of_everything_is_warned_of():
    human = [[f"picture number {index}"] for index in range(6)]
    captioner = Scripted(
        {f"p{index}": "a 2 2 2" for index in range(6)}, {f"p{index}": ["a 2 2 2"] * 5 for index in range(6)}
    )
    validation = validate(captioner, pictures(human))
    assert "100% of 6" in validation.warning
    assert validation.scores["same_caption"] == validation.scores["mbleu_4"] == validation.scores["degenerate"] == 1


def test_no_pictures_is_an_error():
    with pytest.raises(ValueError, match="no held-out picture"):
        validate(Scripted({}, {}), [])


def test_indices_are_spaced_evenly_from_first_to_last():
    assert evenly_spaced(3, 6) == [0, 1, 2] and evenly_spaced(6, 6) == list(range(6)) and evenly_spaced(0, 6) == []
    assert evenly_spaced(11, 6) == [0, 2, 4, 6, 8, 10] and evenly_spaced(11, 1) == [0]
    indices = evenly_spaced(1000, 6)
    assert indices[0] == 0 and indices[-1] == 999 and len(set(indices)) == 6


def test_a_real_captioner_in_training_is_left_as_it_was():
    captioner = load_captioner("coca_tiny")
    captioner.model.train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    held_out = [
        (sample.key, captioner.preprocess(decode_image(sample.image)), sample.captions)
        for shard in read_samples(["scenes:val,n=12,size=56"], None)
        for sample in shard
    ]
    validation = validate(captioner, held_out)
    assert captioner.model.training and torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in captioner.model.parameters())
    assert validation == validate(captioner, held_out)
    assert (
        0 < validation.scores["similarity"] < 1
        and 0 < validation.scores["distinct_2"] < 1
        and 0 < validation.scores["mbleu_4"] < 1
    )
    assert list(validation.examples) == [held_out[index][0] for index in (0, 2, 4, 7, 9, 11)]
    assert all(len(captions) == 3 for captions in validation.examples.values())
