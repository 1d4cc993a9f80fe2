"""The order of pictures and captions: each picture once in a pass, by the seed alone, also after a resume."""

import time
from collections import Counter
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from captioners.coca.forward import forward_trimmed
from captioners.load import load_captioner
from finetune.batching import BatchOrder, UnreadablePicture, batches, collate, decoders, few_widths
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.pictures import CaptionedPictures
from finetune.rejects import check_rejects, report_rejects
from imagetext.pixels import Pixels
from imagetext.sample import Record, decode_image
from imagetext.scenes.draw import SceneSpec, scene_sample
from imagetext.shards import ShardWriter
from imagetext.sources import read_samples

from .sets import write_tar


@pytest.fixture(scope="module")
def captioner():
    return load_captioner("coca_tiny", from_scratch=True)


def samples(count):
    return [scene_sample(SceneSpec("train", size=32), index) for index in range(count)]


class Pictures:
    """The part of a training set that BatchOrder needs: weights, and lengths of captions."""

    def __init__(self, count, weights=None):
        self.weights = np.ones(count) if weights is None else np.array(weights)

    def length(self, index, draw):
        return draw % 50


def test_large_pictures_are_decoded_one_by_one_when_they_are_read_and_when_they_come(captioner, monkeypatch):
    monkeypatch.setattr(Pixels, "SHARE", 1000)
    monkeypatch.setattr("imagetext.limits.IN_FLIGHT", 1024)  # room for one of these pictures
    at_once, most, looked = [], [], []

    def decode(data):
        at_once.append(data)
        most.append(len(at_once))
        time.sleep(0.002)
        at_once.remove(data)
        return decode_image(data)

    monkeypatch.setattr("finetune.captioner.pictures.decode_image", decode)
    monkeypatch.setattr("finetune.captioner.pictures.CACHE_BYTES", 0)
    pictures = CaptionedPictures([samples(12)], captioner)
    assert len(most) == 12 and max(most) == 1
    monkeypatch.setattr(pictures.in_flight, "held", lambda data: looked.append(data) or nullcontext())
    pictures[3, 0]
    assert looked == [samples(12)[3].image]


@pytest.mark.parametrize("room", [12, 11])
def test_pictures_are_decoded_once_if_all_fit_in_memory(room, captioner, monkeypatch):
    """Also after some are left out; if one too many comes, each is decoded when it is needed."""
    decoded = []
    monkeypatch.setattr(
        "finetune.captioner.pictures.decode_image", lambda data: decoded.append(data) or decode_image(data)
    )
    monkeypatch.setattr("finetune.captioner.pictures.CACHE_BYTES", room * 3 * 56 * 56)
    pictures = CaptionedPictures([samples(12)], captioner)
    pictures.leave_out({2, 5})
    assert len(decoded) == 12
    for index, sample in enumerate(pictures.samples):
        assert torch.equal(pictures.image(index), captioner.preprocess(decode_image(sample.image)))
    assert len(decoded) == (12 if room == 12 else 22)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 10, 23])
def test_each_picture_comes_once_a_pass(batch_size):
    """After any number of batches, no picture has come more than once more often than another."""
    counts = Counter()
    for batch in BatchOrder(Pictures(10), batch_size, 64, seed=1):
        assert len(batch) == batch_size
        counts.update(index for index, _ in batch)
        assert max(counts.values()) - min(counts[index] for index in range(10)) <= 1


def test_order_is_a_function_of_the_seed_and_resumes_anywhere():
    all_batches = list(BatchOrder(Pictures(13), 4, 40, seed=3))
    for first in (1, 11, 16, 37):
        assert list(BatchOrder(Pictures(13), 4, 40, seed=3, first=first)) == all_batches[first:]
    assert list(BatchOrder(Pictures(13), 4, 40, seed=4)) != all_batches


def test_ranks_share_a_batch():
    batches_of_all = list(BatchOrder(Pictures(13), 6, 20, seed=3))
    shares = [list(BatchOrder(Pictures(13), 6, 20, seed=3, rank=rank, world=3)) for rank in range(3)]
    assert [sorted(sum(parts, [])) for parts in zip(*shares)] == [sorted(batch) for batch in batches_of_all]
    assert all(len(part) == 2 for share in shares for part in share)


def test_a_batch_holds_what_is_drawn_by_lot_in_the_order_of_lengths(monkeypatch):
    """Lengths do not influence it; otherwise each token of short captions would count more than one of long ones."""
    pictures = Pictures(1000)
    by_length = list(BatchOrder(pictures, 8, 300, seed=0))
    for batch in by_length:
        assert [draw % 50 for _, draw in batch] == sorted(draw % 50 for _, draw in batch)
    monkeypatch.setattr(pictures, "length", lambda index, draw: 0)
    by_lot = list(BatchOrder(pictures, 8, 300, seed=0))
    assert by_lot != by_length and [sorted(batch) for batch in by_lot] == [sorted(batch) for batch in by_length]


def test_pictures_come_as_often_as_their_weight_says():
    order = BatchOrder(
        Pictures(8, [1, 1, 1, 1, 2.5, 2.5, 0.5, 0.5]), 10, 160, seed=0
    )  # 10 pictures in a pass, so a batch is a pass
    counts = Counter(index for batch in order for index, _ in batch)
    assert [counts[index] for index in range(4)] == [160] * 4
    assert counts[4] + counts[5] == 800 and counts[6] + counts[7] == 160
    assert counts[4] < 480 and counts[6] < 160  # chance decides which of two pictures comes


@pytest.mark.parametrize("several", [1, 3])
def test_all_captions_of_a_picture_are_drawn(captioner, several):
    pictures = CaptionedPictures([samples(3)], captioner, captions_per_image=several)
    counts = Counter()
    for item in chain.from_iterable(BatchOrder(pictures, 3, 200, seed=0)):
        captions = [tuple(ids) for ids in pictures[item][1]]
        assert len(set(captions)) == several
        counts.update(captions)
    assert len(counts) == 15 and min(counts.values()) > 15 * several  # 40 expected of each; below 16 with chance 1e-5


def test_more_captions_than_there_are_come_again(captioner):
    pictures = CaptionedPictures([samples(1)], captioner, captions_per_image=7)
    captions = [tuple(ids) for ids in pictures[0, 3][1]]
    assert len(captions) == 7 and len(set(captions)) == 5


def test_pictures_held_out_do_not_come_again(captioner):
    pictures = CaptionedPictures([samples(20)], captioner)
    held_out = pictures.hold_out(6, seed=1)
    keys = {sample.key for sample in held_out}
    assert len(keys) == 6 and len(pictures) == 14
    assert not keys & {pictures[item][3] for item in chain.from_iterable(BatchOrder(pictures, 7, 4, seed=0))}
    again = CaptionedPictures([samples(20)], captioner)
    assert [sample.key for sample in again.hold_out(6, seed=1)] == [sample.key for sample in held_out]
    assert torch.equal(pictures.image(0), captioner.preprocess(decode_image(pictures.samples[0].image)))


def test_rejects_are_named_and_the_rest_is_kept(captioner):
    good = samples(1)[0]
    broken = Record("broken", good.image[:100], good.captions)
    mute = Record("mute", good.image, (" ",))
    missing = Record("missing", None, good.captions, error="a.jpg: no such file")
    pictures = CaptionedPictures([[broken, good], [mute, missing]], captioner)
    assert len(pictures) == 1
    rejects = dict(pictures.rejects)
    assert rejects["missing"] == "a.jpg: no such file" and rejects["mute"] == "no caption" and "broken" in rejects
    with pytest.raises(ValueError, match="^--input: no usable captioned picture:\n  broken: .*\n  mute: no caption$"):
        CaptionedPictures([[broken, mute]], captioner)


def test_a_conversation_of_several_answers_is_named_as_the_reason(captioner, tmp_path, capsys):
    """Such a row is no damaged one, so `--max-error-rate` does not count it."""
    (good,) = samples(1)
    turns = [{"from": "gpt", "value": text} for text in ("a disc", "red")]
    talk = Record("talk", good.image, meta={"conversations": turns})
    pictures = CaptionedPictures([[good, talk]], captioner)
    ((key, reason),) = pictures.rejects
    assert key == "talk" and reason.startswith("no caption: 'conversations' is a conversation with 2 answers, and")
    check_rejects(pictures.rejects, 1, FinetuneConfig(input=["x"], model="coca_tiny", output="y", max_error_rate=0))
    report_rejects(pictures.rejects, [], tmp_path)
    assert f"; the first is 'talk': {reason}" in " ".join(capsys.readouterr().out.split())


def test_failures_that_the_input_already_had_are_passed_over_and_told_once(captioner, tmp_path, capsys):
    good = samples(9)
    with ShardWriter(tmp_path, "set", columns=["syn_text_a"]) as writer:
        for sample in good:
            writer.write(replace(sample, columns={"syn_text_a": ("one",)}))
        writer.write(Record("failed", b"text", ("one",), error="not a picture"))
    shards = read_samples(str(tmp_path / "set.tar"))
    pictures = CaptionedPictures(shards, captioner)
    pictures.add(CaptionedPictures(shards, captioner))
    assert (
        len(pictures) == 18 and pictures.rejects == [] and pictures.failed_before == [("failed", "not a picture")] * 2
    )
    report_rejects(pictures.rejects, pictures.failed_before, tmp_path)
    assert (
        "2 rows of the input had failed before" in (printed := capsys.readouterr().out) and "left out" not in printed
    )
    assert (tmp_path / "rejects.jsonl").read_text().count('"failed"') == 2


def test_pictures_that_are_files_are_not_held_in_memory(captioner, tmp_path):
    both = samples(2)
    for name, sample in zip("ab", both):
        (tmp_path / f"{name}.png").write_bytes(sample.image)
        (tmp_path / f"{name}.txt").write_text("a circle")
    pictures = CaptionedPictures(read_samples(str(tmp_path)), captioner)
    assert [one.image for one in pictures.samples] == [None, None] and pictures.encoded(1) == both[1].image
    assert torch.equal(pictures.image(0), captioner.preprocess(decode_image(both[0].image)))
    assert pictures.hold_out(1, seed=0)[0].image in (both[0].image, both[1].image)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="missing picture file"):
        pictures.encoded(0)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content, reason", [(None, "missing picture file"), (b"text", "not a picture")])
def test_a_picture_that_can_no_longer_be_read_is_named(content, reason, workers, captioner, tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.captioner.pictures.CACHE_BYTES", 0)
    (path := tmp_path / "lost.png").write_bytes(samples(1)[0].image)
    path.with_suffix(".txt").write_text("a circle")
    order = BatchOrder(CaptionedPictures(read_samples(str(tmp_path)), captioner), 1, 1, seed=0)
    path.unlink()
    if content:
        path.write_bytes(content)
    message = f"lost: could be read when the run began, and cannot be read now: {reason}"
    with closing(batches(order, workers)) as loader, pytest.raises(UnreadablePicture, match=f"^{message}") as error:
        next(loader)
    # `error` keeps torch's iterator alive, and Python would wait at its exit for processes that ignore SIGTERM
    assert error and not torch.multiprocessing.active_children()


def test_pictures_of_tars_are_not_held_in_memory(captioner, tmp_path):
    originals = samples(5)
    files = {sample.key: {"jpg": sample.image, "txt": b"a circle", "npz": b"x" * 99} for sample in originals}
    spec = write_tar(tmp_path / "0.tar", files)
    pictures = CaptionedPictures(read_samples(spec), captioner)
    assert all(one.image is None and not one.members for one in pictures.samples)
    assert [pictures.encoded(index) for index in range(5)] == [sample.image for sample in originals]
    held_out = pictures.hold_out(2, seed=0)
    assert {one.key: one.image for one in held_out}.items() <= {one.key: one.image for one in originals}.items()
    assert [pictures.encoded(at) for at in range(3)] == [
        one.image for one in originals if one.key not in {other.key for other in held_out}
    ]


def test_batches_are_trimmed_and_long_captions_cut(captioner):
    sample, side = samples(1)[0], captioner.preprocess_cfg["size"][0]
    long = Record("long", sample.image, ("a red circle " * 60,))
    pictures = CaptionedPictures([[sample, long]], captioner, long_captions="token")
    batch = next(iter(batches(BatchOrder(pictures, 2, 1, seed=0), num_workers=0)))
    assert batch.images.shape == (2, 3, side, side) and set(batch.keys) == {sample.key, "long"}
    assert [pictures.samples[number].key for number in batch.pictures] == batch.keys
    tokens = batch.tokens[:, 0]
    row = tokens[batch.keys.index("long")]
    assert (row != captioner.pad_id).sum() == captioner.context_length and row[
        captioner.context_length - 1
    ] == captioner.end_id
    assert tokens.shape[1] == captioner.context_length + 1


def test_caption_lengths_are_of_the_whole_set(captioner):
    scenes = samples(4)
    pictures = CaptionedPictures([scenes], captioner)
    every = [len(captioner.encode_text_ids(caption)) for sample in scenes for caption in sample.captions]
    assert pictures.caption_lengths() == every and pictures.caption_lengths(most=7) == every[::3]


def test_collate_pads_to_the_longest_and_one():
    items = [(torch.zeros(3, 2, 2), [[1, 5, 2], [1, 2]], 4, "a"), (torch.ones(3, 2, 2), [[1, 2], [1, 6, 2]], 7, "b")]
    batch = collate(items, pad_id=0)
    assert batch.tokens.tolist() == [[[1, 5, 2, 0], [1, 2, 0, 0]], [[1, 2, 0, 0], [1, 6, 2, 0]]]
    first, second = batch.parts(2, torch.device("cpu"))
    assert second.keys == ["b"] and second.pictures.tolist() == [7] and second.images.sum() == 12
    assert first.tokens.tolist() == batch.tokens[:1].tolist()
    encoded = collate([((torch.ones(2), torch.zeros(4)), [[1, 2]], 0, "a")], pad_id=0)
    assert [image.shape for image in encoded.parts(1, torch.device("cpu"))[0].images] == [(1, 2), (1, 4)]


def test_captions_come_to_a_gpu_in_few_widths():
    """Each part's width is the least multiple of eight that holds its longest caption and a pad; ids stay."""
    items = [
        (torch.zeros(3, 2, 2), [[1, *range(3, 1 + length), 2]], number, str(number))
        for number, length in enumerate((3, 7, 8, 20))
    ]
    batch = collate(items, pad_id=0)
    parts = batch.parts(4, torch.device("meta"), pad_id=0)
    assert [part.tokens.shape for part in parts] == [(1, 1, 8), (1, 1, 8), (1, 1, 16), (1, 1, 24)]
    for width in (8, 16):
        tokens = batch.tokens[:2]
        cut = few_widths(tokens if width == 8 else torch.nn.functional.pad(tokens, (0, 40)), 0)
        assert cut.shape == (2, 1, 8) and torch.equal(cut, tokens[..., :8])
    assert [part.tokens.shape[-1] for part in batch.parts(4, torch.device("cpu"), pad_id=0)] == [21] * 4
    assert [part.tokens.shape[-1] for part in batch.parts(4, torch.device("meta"))] == [21] * 4


@torch.no_grad()
def test_captions_as_long_as_the_context_are_trained_on_a_gpu():
    """The tokens that a GPU would get have the losses of those that a CPU gets."""
    captioner, images = load_captioner("coca_tiny"), torch.rand(2, 3, 56, 56)
    for longest in range(captioner.context_length - 9, captioner.context_length + 1):
        captions = [torch.randint(3, 1000, (1, length)).tolist() for length in (longest, 9)]
        batch = collate([(image, ids, 0, "") for image, ids in zip(images, captions)], pad_id=captioner.pad_id)
        on_cpu = forward_trimmed(captioner.model, images, batch.tokens)
        on_gpu = forward_trimmed(captioner.model, images, few_widths(batch.tokens, captioner.pad_id), trim=False)
        for name, expected in on_cpu.items():
            torch.testing.assert_close(on_gpu[name], expected, atol=1e-4, rtol=0)


def test_a_gpus_pictures_are_decoded_by_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr("captioners.machine._quotas", lambda root: [])
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(16))
    assert [decoders(None, True), decoders(None, False), decoders(3, True), decoders(0, True)] == [15, 1, 3, 0]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert decoders(None, True) == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(1))
    assert decoders(None, True) == 1
