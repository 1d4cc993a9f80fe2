"""Captions drawn in slots equal those of `Drawing`; CUDA graphs and devices are replaced by fakes."""

import gc
import weakref

import pytest
import torch

from captioners.base import Request, SamplingConfig
from captioners.coca import captioner as coca
from captioners.coca.decode import Decoding
from captioners.decoding import slots
from captioners.decoding.batch import Drawing
from captioners.decoding.rows import Rules
from captioners.decoding.slots import SlotDrawing, Slots
from captioners.load import load_captioner
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.forward import CoCaForward

from .test_draw import END, PAD, START, ending_model, fast_captions, images_of

__all__ = ["ending_model"]  # a fixture


class Rows:
    """A CoCa's rows in slots, which record their calls."""

    def __init__(self, model, count: int, captions: int, limit: int):
        self.model, self.begun, self.steps = model, [], 0
        self.decoding = Decoding(
            model, torch.zeros(count, *model._encode_image(images_of(1))[1].shape[1:]), limit=limit
        )
        self.decoding.keep(torch.arange(count).repeat_interleave(captions))

    def begin(self, where, pictures):
        self.begun.append(where.tolist())
        features, image_tokens = self.model._encode_image(pictures)
        self.decoding.restart(where, image_tokens)
        return features

    def step(self, tokens):
        self.steps += 1
        return self.decoding.step(tokens[:, None], self.decoding.limit)[:, 0]


def slot_captions(
    model, images, keys, sampling, max_length=17, batch_size=16, prefix=(START,), first_index=0, column=""
):
    """The captions of each picture, all features, and the slots in which they were drawn."""
    taken_slots, given_back = [], []
    rules = Rules(sampling, torch.tensor(prefix), torch.tensor([PAD, START, *range(290, 300)]), END, max_length)

    def take(count):
        with torch.no_grad():
            taken_slots.append(Slots(Rows(model, count, sampling.num_captions, limit=max_length - 2), rules, count))
        return taken_slots[-1]

    results = list(
        SlotDrawing(
            take,
            given_back.append,
            map(Request, keys, images),
            rules=rules,
            batch_size=batch_size,
            column=column,
            first_index=first_index,
        )
    )
    assert [picture.key for picture in results] == list(keys)
    assert taken_slots == given_back
    return (
        [picture.captions for picture in results],
        torch.stack([picture.features for picture in results]),
        taken_slots,
    )


def assert_equal(ours, theirs):
    for caption, other in zip(ours, theirs, strict=True):
        assert [decoded.tokens for decoded in caption] == [decoded.tokens for decoded in other]
        assert [decoded.truncated for decoded in caption] == [decoded.truncated for decoded in other]
        assert [decoded.logprob for decoded in caption] == pytest.approx(
            [decoded.logprob for decoded in other], abs=1e-4
        )


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"top_p": 0.3, "temperature": 1.5},
        {"strategy": "greedy", "num_captions": 1},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "top_k": 40},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_size, look_every", [(16, 4), (3, 1), (2, 7)])
def test_captions_in_slots_are_those_drawn(ending_model, monkeypatch, values, batch_size, look_every):
    monkeypatch.setattr(slots, "LOOK_EVERY", look_every)
    sampling = SamplingConfig(**{"num_captions": 3, "min_length": 0} | values)
    images, keys = images_of(9), list("abcdefghi")
    expected, features, _ = fast_captions(
        ending_model, images, keys, sampling=sampling, first_index=2, column="syn_text_x"
    )
    captions, others, [used] = slot_captions(
        ending_model, images, keys, sampling=sampling, batch_size=batch_size, first_index=2, column="syn_text_x"
    )
    assert_equal(captions, expected)
    torch.testing.assert_close(others, features)
    assert used.count == min(batch_size, 16)
    assert (
        sorted(slot for begun in used.rows.begun for slot in begun) != list(range(9)) or batch_size == 16
    )  # some are used again


def test_a_prompt_is_fed_and_not_chosen(ending_model):
    sampling, images = SamplingConfig(num_captions=2, min_length=0), images_of(3)
    captions, _, _ = slot_captions(ending_model, images, list("abc"), sampling=sampling, prefix=(START, 40, 50, 60))
    rules = Rules(sampling, torch.tensor([START, 40, 50, 60]), torch.tensor([PAD, START, *range(290, 300)]), END, 17)

    def begin(requests):
        features, image_tokens = ending_model._encode_image(torch.stack([request.picture for request in requests]))
        return features, Decoding(ending_model, image_tokens, limit=15)

    assert_equal(
        captions, [picture.captions for picture in Drawing(begin, map(Request, "abc", images), rules, batch_size=3)]
    )
    assert all(decoded.tokens[:4] == [START, 40, 50, 60] for picture in captions for decoded in picture)


def test_few_pictures_take_few_slots_and_the_last_ones_as_many_as_before(ending_model):
    sampling = SamplingConfig(num_captions=1)
    for pictures, count in ((1, 1), (3, 4), (5, 8), (20, 8)):
        _, _, [used] = slot_captions(
            ending_model, images_of(pictures), [str(i) for i in range(pictures)], sampling=sampling, batch_size=8
        )
        assert used.count == count


def test_no_pictures_take_no_slots():
    rules = Rules(SamplingConfig(), torch.tensor([START]), torch.tensor([PAD]), END, 17)
    assert list(SlotDrawing(None, None, [], rules=rules, batch_size=2)) == []


def test_logits_that_are_not_finite_are_an_error(ending_model):
    class Broken(Rows):
        def step(self, tokens):
            return super().step(tokens) * float("nan")

    rules = Rules(SamplingConfig(num_captions=2), torch.tensor([START]), torch.tensor([PAD]), END, 17)
    drawing = SlotDrawing(
        lambda count: Slots(Broken(ending_model, count, 2, 15), rules, count),
        [].append,
        map(Request, "ab", images_of(2)),
        rules=rules,
        batch_size=2,
    )
    with pytest.raises(FloatingPointError, match="not finite"), torch.no_grad():
        list(drawing)


class FakeCuda:
    """The parts of torch.cuda that Slots uses, on the CPU: a graph replays by calling the captured function again."""

    def __init__(self, monkeypatch, slots_under_test: list):
        self.captured_on, self.replays, self.current = [], 0, 0
        cuda = self

        class Device:
            def __init__(self, device):
                self.device = torch.device(device)

            def __enter__(self):
                self.before, cuda.current = cuda.current, self.device.index

            def __exit__(self, *_):
                cuda.current = self.before

        class Graph:
            def replay(self):
                cuda.replays += 1
                assert [
                    tensor.data_ptr() for tensor in Capture.tensors(self.slots)
                ] == self.places  # a graph knows no names
                self.slots._step()

        class Capture:
            def __init__(self, graph, **_):
                self.graph = graph

            def __enter__(self):
                [slots] = slots_under_test
                self.graph.slots, self.graph.places = slots, [tensor.data_ptr() for tensor in self.tensors(slots)]
                cuda.captured_on.append(cuda.current)
                self.state = [tensor.clone() for tensor in self.tensors(slots)]

            def __exit__(self, *_):  # a capture runs nothing
                for tensor, before in zip(self.tensors(self.graph.slots), self.state, strict=True):
                    tensor.copy_(before)

            @staticmethod
            def tensors(slots):
                decoding = slots.rows.decoding
                caches = (*decoding.text_caches, *decoding.decoder_caches)
                return [
                    *slots.flight,
                    slots.tokens,
                    decoding.lengths,
                    decoding.pad_mask,
                    *(tensor for cache in caches for tensor in (cache.keys, cache.values)),
                ]

        class Stream:
            def wait_stream(self, other):
                pass

            def __enter__(self):
                pass

            def __exit__(self, *_):
                pass

        monkeypatch.setattr(torch.cuda, "device", Device)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", Capture)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: Stream())
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)


def test_a_run_is_one_graph_captured_on_its_own_device(ending_model, monkeypatch):
    """The second GPU is the current device during the capture, and one graph serves all pictures."""
    sampling, images, keys = SamplingConfig(num_captions=3, min_length=0), images_of(9), list("abcdefghi")
    expected, _, _ = fast_captions(ending_model, images, keys, sampling=sampling)
    under_test: list[Slots] = []
    cuda = FakeCuda(monkeypatch, under_test)
    init = Slots.__init__

    def begin_on_the_second(self, *args):
        init(self, *args)
        under_test[:], self._step_graph.device = [self], torch.device("cuda:1")

    monkeypatch.setattr(Slots, "__init__", begin_on_the_second)
    captions, _, [used] = slot_captions(ending_model, images, keys, sampling=sampling, batch_size=2)
    assert_equal(captions, expected)
    assert cuda.captured_on == [1] and cuda.replays == used.rows.steps - 2  # the first was plain, the second captured
    assert cuda.current == 0


def test_slots_are_used_again_by_the_next_call_alone(captioner, pictures):
    """An unfinished call keeps its slots; a call with other settings, or after weights moved, gets new ones."""
    captioner._free_slots.clear()
    rules = captioner._rules(SamplingConfig(num_captions=2))
    with torch.no_grad():
        first = captioner._take_slots(rules, 2)
        assert captioner._take_slots(rules, 2) is not first
        captioner._free_slots.append(first)
        assert captioner._take_slots(rules, 4) is not first
        assert captioner._take_slots(captioner._rules(SamplingConfig(num_captions=3)), 2) is not first
        assert captioner._take_slots(rules, 2) is first
        captioner._free_slots.append(first)
        before = captioner.model.logit_scale
        captioner.model.logit_scale = torch.nn.Parameter(before.detach().clone())
        assert captioner._take_slots(rules, 2) is not first
        captioner.model.logit_scale = before
    captioner._free_slots.clear()


@pytest.fixture
def without_gc():
    """Python does not look for objects that keep each other, so that only what nothing refers to is freed."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_validation_leaves_nothing_on_a_gpu(lora_rank, without_gc, monkeypatch, tmp_path):
    """While a model trains, the captioner that is written keeps slots for as long as it lives, and not longer."""
    monkeypatch.setattr(coca.CoCaCaptioner, "on_gpu", True, raising=False)
    config = FinetuneConfig(input=["x"], model="coca_tiny", output=tmp_path, device="cpu", lora_rank=lora_rank)
    forward = CoCaForward(load_captioner("coca_tiny"), config)
    requests = [Request("a", torch.zeros(3, 56, 56, dtype=torch.uint8))]
    for _ in range(2):
        written = forward.written()
        for _ in range(2):
            list(written.caption(requests, SamplingConfig(num_captions=2, max_length=8)))
        [slots] = map(weakref.ref, written._free_slots)
        model = weakref.ref(written.model)
        del written
        assert slots() is None and (model() is None or not lora_rank)


def test_a_captioner_on_a_gpu_draws_in_slots(captioner, pictures, monkeypatch):
    """The captioner's path for a GPU yields the same captions on the CPU."""
    sampling = SamplingConfig(num_captions=3)
    expected = list(captioner.caption(pictures, sampling, similarity=True))
    monkeypatch.setattr(coca, "search", None)
    monkeypatch.setattr(coca.CoCaCaptioner, "on_gpu", True, raising=False)
    results = list(captioner.caption(pictures, sampling, similarity=True))
    for ours, theirs in zip(results, expected, strict=True):
        assert [caption.text for caption in ours.captions] == [caption.text for caption in theirs.captions]
        assert [caption.similarity for caption in ours.captions] == pytest.approx(
            [caption.similarity for caption in theirs.captions], abs=1e-5
        )
    captioner._free_slots.clear()
