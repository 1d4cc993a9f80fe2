"""Which picture and caption come when: each picture once a pass, a function of the seed alone, whatever was resumed."""

from collections import Counter
from itertools import chain

import pytest
import torch

from captioners.coca import load_captioner
from finetune.batching import BatchOrder, CaptionedPictures, batches, collate
from imagetext.sample import Sample
from imagetext.scenes import SceneSpec, scene_sample


@pytest.fixture(scope="module")
def captioner():
    return load_captioner("coca_tiny", from_scratch=True)


def samples(count):
    return [scene_sample(SceneSpec("train", size=32), index) for index in range(count)]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 10, 23])
def test_each_picture_comes_once_a_pass(batch_size):
    drawn = [index for batch in BatchOrder(10, batch_size, 30, seed=1) for index, _ in batch]
    assert len(drawn) == 30 * batch_size
    for first in range(0, len(drawn) - 9, 10):
        assert sorted(drawn[first:first + 10]) == list(range(10))
    assert drawn[:10] != drawn[10:20] or batch_size == 1


def test_order_is_a_function_of_the_seed_and_resumes_anywhere():
    whole = list(BatchOrder(13, 4, 20, seed=3))
    assert list(BatchOrder(13, 4, 20, seed=3, first=11)) == whole[11:]
    assert list(BatchOrder(13, 4, 20, seed=4)) != whole


def test_all_captions_of_a_picture_are_drawn(captioner):
    pictures = CaptionedPictures([samples(3)], captioner)
    drawn = Counter(tuple(pictures[item][1]) for item in chain.from_iterable(BatchOrder(3, 3, 200, seed=0)))
    assert len(drawn) == 15 and min(drawn.values()) > 15  # 40 expected of each; below 16 with chance 1e-5


def test_rejects_are_named_and_the_rest_is_kept(captioner):
    good = samples(1)[0]
    broken = Sample("broken", good.image[:100], good.captions, {}, {})
    mute = Sample("mute", good.image, (" ",), {}, {})
    missing = Sample("missing", None, good.captions, {}, {"error": "a.jpg: no such file"})
    pictures = CaptionedPictures([[broken, good], [mute, missing]], captioner)
    assert len(pictures) == 1
    rejects = dict(pictures.rejects)
    assert rejects["missing"] == "a.jpg: no such file" and rejects["mute"] == "no caption" and "broken" in rejects
    with pytest.raises(ValueError, match="no usable captioned picture"):
        CaptionedPictures([[broken]], captioner)


def test_batches_are_trimmed_and_long_captions_cut(captioner):
    sample, side = samples(1)[0], captioner.preprocess_cfg["size"][0]
    long = Sample("long", sample.image, ("a red circle " * 60,), {}, {})
    pictures = CaptionedPictures([[sample, long]], captioner, "token")
    pixels, tokens, keys = next(iter(batches(pictures, 2, 1, 0, 0, num_workers=0)))
    assert pixels.shape == (2, 3, side, side) and set(keys) == {sample.key, "long"}
    row = tokens[keys.index("long")]
    assert (row != captioner.pad_id).sum() == captioner.context_length and row[captioner.context_length - 1] == captioner.end_id
    assert tokens.shape[1] == captioner.context_length + 1


def test_caption_lengths_are_of_the_whole_set(captioner):
    drawn = samples(4)
    pictures = CaptionedPictures([drawn], captioner)
    every = [len(captioner.encode_text_ids(caption)) for sample in drawn for caption in sample.captions]
    assert pictures.caption_lengths() == every and pictures.caption_lengths(most=7) == every[::3]


def test_collate_pads_to_the_longest_and_one():
    _, tokens, _ = collate([(torch.zeros(3, 2, 2), [1, 5, 2], "a"), (torch.zeros(3, 2, 2), [1, 2], "b")], pad_id=0)
    assert tokens.tolist() == [[1, 5, 2, 0], [1, 2, 0, 0]]
