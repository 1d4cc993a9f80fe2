"""Whole captions, compared with a simple loop without a cache; and the batch that is kept full."""

import math

import numpy as np
import pytest
import torch

from captioners.base import Request, SamplingConfig
from captioners.coca.decode import Decoding
from captioners.decoding import batch as draw
from captioners.decoding.batch import Drawing
from captioners.decoding.rows import Rules
from captioners.decoding.sampling import ATTEMPTS, LEVELS, race_side, sample_key

PAD, START, END = 0, 1, 2


def images_of(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def slow_logits(model, image, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(image[None], torch.tensor([tokens]), output_labels=False)["logits"]
    return logits[0, -1]


def slow_draw(weights: list[float], top_p: float, key: str, caption: int, position: int) -> int:
    """The sampled token, in plain Python: exponential races of blocks, repeated until the token is in the nucleus."""
    side, total = race_side(len(weights)), sum(weights)
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    nucleus = {token for i, token in enumerate(order) if sum(weights[t] for t in order[:i]) < top_p * total}
    for attempt in range(ATTEMPTS + 1):
        if attempt == ATTEMPTS:
            weights = [weight if token in nucleus else 0.0 for token, weight in enumerate(weights)]
        words = [
            word
            for block in range(-(-LEVELS * side // 4))
            for word in numpy_words(key, block, attempt, position, caption)
        ]
        clocks = [-math.log(((word >> 11) + 0.5) / 2**53) for word in words]
        block, first = side ** (LEVELS - 1), 0
        for level in range(LEVELS):
            times = []
            for i in range(side):
                mass = sum(weights[first + i * block : first + (i + 1) * block])
                times.append(clocks[level * side + i] / mass if mass else math.inf)
            first += block * times.index(min(times))
            block //= side
        if first in nucleus:
            return first
    raise AssertionError("the last attempt draws within the nucleus")


def numpy_words(key: str, *counter: int) -> list[int]:
    """NumPy's four words for this key and counter. NumPy adds 1 to a counter first, so it gets one less."""
    low, high = (word % 2**64 for word in sample_key(0, key))
    number = sum(word << 64 * i for i, word in enumerate(counter))
    return np.random.Philox(counter=(number - 1) % 2**256, key=low + (high << 64)).random_raw(4).tolist()


def slow_caption(model, image, sampling, key="", caption=0, max_length=17):
    """One caption's tokens, log-probability and truncation, without a cache; only bans and temperature are applied."""
    tokens, logprob = [START], 0.0
    while len(tokens) < max_length - 1:
        logits = slow_logits(model, image, tokens)
        scores = logits / sampling.temperature if sampling.strategy == "sample" else logits.clone()
        scores[[PAD, START, *range(290, 300)]] = -math.inf
        if len(tokens) < sampling.min_length:
            scores[END] = -math.inf
        if sampling.strategy == "greedy":
            token = scores.argmax().item()
        else:
            token = slow_draw(scores.softmax(-1).tolist(), sampling.top_p, key, caption=caption, position=len(tokens))
        tokens.append(token)
        logprob += logits.log_softmax(-1)[token].item()
        if token == END:
            return tokens, logprob, False
    return [*tokens, END], logprob, True


def fast_captions(model, images, keys, sampling, max_length=17, batch_size=16, decoding=Decoding, **options):
    """The captions of each picture, all features, and how many rows were fed how many tokens at each step."""
    fed = []

    class Watched(decoding):
        def extend(self, tokens):
            fed.append(tuple(tokens.shape))
            return super().extend(tokens)

    def begin(requests):
        features, image_tokens = model._encode_image(torch.stack([request.picture for request in requests]))
        return features, Watched(model, image_tokens, limit=max_length - 2)

    rules = Rules(sampling, torch.tensor([START]), torch.tensor([PAD, START, *range(290, 300)]), END, max_length)
    results = list(Drawing(begin, map(Request, keys, images), rules, batch_size=batch_size, **options))
    assert [picture.key for picture in results] == list(keys)
    return [picture.captions for picture in results], torch.stack([picture.features for picture in results]), fed


@pytest.fixture(scope="module")
def ending_model(make_captioner):
    """A model whose captions differ between pictures, and have many lengths."""
    model = make_captioner().model
    decoder, bias = model.text_decoder, model.text_decoder.ln_final.bias
    with torch.no_grad():
        for weight in (model.visual.attn_pool.attn.q_proj_weight, model.visual.attn_pool.attn.k_proj_weight):
            weight *= 4
        for block in decoder.cross_attn:
            block.attn.in_proj_weight *= 3
            block.attn.out_proj.weight *= 3
        decoder.text_projection[:, END] *= 4
        decoder.text_projection[:, END] += 3 * bias / (bias @ bias)  # raises the end token's logit by 3
    return model


def assert_same(decoded, expected):
    tokens, logprob, truncated = expected
    assert decoded.tokens == tokens
    assert decoded.logprob == pytest.approx(logprob, abs=1e-3)
    assert decoded.truncated is truncated


@pytest.mark.parametrize("max_length", [3, 6, 17])
def test_greedy_captions_are_those_of_an_obvious_loop(ending_model, max_length):
    sampling, images = SamplingConfig(strategy="greedy", min_length=0), images_of(8)
    captions, _, _ = fast_captions(ending_model, images, list("abcdefgh"), sampling=sampling, max_length=max_length)
    expected = [slow_caption(ending_model, image, sampling, max_length=max_length) for image in images]
    for (decoded,), slow in zip(captions, expected, strict=True):
        assert_same(decoded, slow)
    if max_length == 17:
        assert len({len(tokens) for tokens, _, _ in expected}) > 1


@pytest.mark.parametrize("values", [{}, {"temperature": 0.7, "top_p": 0.5}, {"top_p": 0.05}, {"top_p": 1.0}], ids=str)
def test_sampled_captions_are_those_of_an_obvious_loop_with_the_same_draws(ending_model, values):
    sampling, images, keys = SamplingConfig(num_captions=3, **values), images_of(3), ["a", "b", "ü"]
    captions, _, _ = fast_captions(ending_model, images, keys, sampling=sampling, first_index=2)
    assert len({len(decoded.tokens) for picture in captions for decoded in picture}) > 1
    for image, key, of_picture in zip(images, keys, captions, strict=True):
        for i, decoded in enumerate(of_picture):
            assert_same(decoded, slow_caption(ending_model, image, sampling, key=key, caption=2 + i))


def test_the_last_token_is_never_fed_back(ending_model):
    sampling = SamplingConfig(num_captions=2)
    captions, _, fed = fast_captions(ending_model, images_of(2), ["a", "b"], sampling=sampling, max_length=9)
    longest = max(len(decoded.tokens) for picture in captions for decoded in picture)
    assert longest == 9
    assert sum(columns for _, columns in fed) == 7  # of nine, the last is forced and the one before it not fed
    assert fed[0][0] == 2  # one row per picture until captions differ


# The batch


def ending_choices(caption_lengths: dict[int, int]):
    """A `choose` that ends caption i, counted over all pictures, after caption_lengths[i] tokens.

    The second token of caption i is 100 + i. New rows come last, in order, with only the start token.
    """
    begun = 0

    def choose(logits, sequences, sampling, *, lengths: torch.Tensor, **_):
        nonlocal begun
        tokens = []
        for row, length in zip(sequences.tolist(), lengths.tolist(), strict=True):
            if length == 1:
                which, begun = begun, begun + 1
            else:
                which = row[len(row) - length + 1] - 100
            tokens.append(END if caption_lengths.get(which) in (None, length + 1) else 100 + which)
        return torch.tensor(tokens), torch.zeros(len(tokens))

    return choose


def test_finished_captions_leave_and_decoding_stops_early(captioner, monkeypatch):
    monkeypatch.setattr(draw, "choose", ending_choices({0: 3, 1: 3, 2: 3, 3: 5, 4: 3, 5: 6}))
    captions, _, fed = fast_captions(
        captioner.model, images_of(3), list("abc"), sampling=SamplingConfig(num_captions=2)
    )
    assert [len(decoded.tokens) for picture in captions for decoded in picture] == [3, 3, 3, 5, 3, 6]
    assert [rows for rows, _ in fed] == [3, 6, 2, 2, 1]
    assert not any(decoded.truncated for picture in captions for decoded in picture)


def test_the_next_pictures_join_as_soon_as_there_is_room(captioner, monkeypatch):
    """Two captions per picture, two pictures in flight.

    The third joins when the first's captions end, and finishes before the second.
    """
    monkeypatch.setattr(draw, "choose", ending_choices({0: 3, 1: 3, 2: 9, 3: 8, 4: 3, 5: 3, 6: 4, 7: 2}))
    captions, _, fed = fast_captions(
        captioner.model, images_of(4), list("abcd"), sampling=SamplingConfig(num_captions=2), batch_size=2
    )
    assert [[len(decoded.tokens) for decoded in picture] for picture in captions] == [[3, 3], [9, 8], [3, 3], [4, 2]]
    assert [decoded.tokens[1] for picture in captions for decoded in picture][:7] == [
        100,
        101,
        102,
        103,
        104,
        105,
        106,
    ]
    # a and b begin; 4 rows; those of a leave, c begins; 4 rows; those of c leave, d begins, and a caption of d ends at
    # its first token
    # after the next: 4 rows, then 3; d's other leaves: 2, of which one ends before the other
    assert [rows for rows, _ in fed] == [2, 4, 1, 4, 1, 4, 3, 2, 2, 1]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_captions_are_the_same_however_many_are_in_flight(ending_model, batch_size):
    sampling, images, keys = SamplingConfig(num_captions=3), images_of(9), list("abcdefghi")
    expected, features, _ = fast_captions(ending_model, images, keys, sampling=sampling)
    captions, others, fed = fast_captions(ending_model, images, keys, sampling=sampling, batch_size=batch_size)
    assert [[decoded.tokens for decoded in picture] for picture in captions] == [
        [decoded.tokens for decoded in picture] for picture in expected
    ]
    torch.testing.assert_close(others, features)
    assert max(rows for rows, _ in fed) <= 3 * batch_size


@pytest.mark.parametrize("check_every", [2, 5, 100])
def test_captions_are_the_same_however_seldom_their_ends_are_looked_for(ending_model, check_every):
    sampling, images, keys = SamplingConfig(num_captions=3, min_length=0), images_of(9), list("abcdefghi")
    expected, _, _ = fast_captions(ending_model, images, keys, sampling=sampling, batch_size=4)
    captions, _, _ = fast_captions(
        ending_model, images, keys, sampling=sampling, batch_size=4, check_every=check_every
    )
    assert [[decoded.tokens for decoded in picture] for picture in captions] == [
        [decoded.tokens for decoded in picture] for picture in expected
    ]
    for ours, theirs in zip(captions, expected, strict=True):
        assert [decoded.logprob for decoded in ours] == pytest.approx(
            [decoded.logprob for decoded in theirs], abs=1e-4
        )


def test_logits_that_are_not_finite_are_an_error(captioner):
    class Broken(Decoding):
        def extend(self, tokens):
            return super().extend(tokens) * math.nan

    with pytest.raises(FloatingPointError, match="not finite"):
        fast_captions(captioner.model, images_of(2), ["a", "b"], sampling=SamplingConfig(), decoding=Broken)


def test_the_batch_is_kept_full(ending_model):
    """For captions of unequal length, refilling keeps over four fifths of the rows at work, except at the end."""
    sampling, images = SamplingConfig(num_captions=3), images_of(40)
    captions, _, fed = fast_captions(
        ending_model, images, [str(i) for i in range(40)], sampling=sampling, batch_size=6
    )
    steps = [rows for rows, _ in fed if rows > 6]  # not the first token of new pictures
    needed = sum(len(decoded.tokens) - 2 - decoded.truncated for picture in captions for decoded in picture) - 3 * 40
    assert len({len(decoded.tokens) for picture in captions for decoded in picture}) > 5
    assert max(steps) <= 18 and sum(steps[:-12]) / len(steps[:-12]) > 0.8 * 18
    assert needed > 0.75 * sum(rows for rows, _ in fed)


def unsteady(size: float) -> type[Decoding]:
    """Logits with errors of up to `size` that differ each time, as those of other batches differ by a millionth."""
    generator = torch.Generator().manual_seed(5)

    class Unsteady(Decoding):
        def extend(self, tokens):
            logits = super().extend(tokens)
            return logits + size * (2 * torch.rand(logits.shape, generator=generator) - 1)

    return Unsteady


def decided_within(model, image, sampling, key, caption, tokens, tolerance) -> bool:
    """Whether such errors can decide which token follows: an error of that size changes the slow draw."""
    logits = slow_logits(model, image, tokens)
    logits[[PAD, START, *range(290, 300)]] = -math.inf
    if len(tokens) < sampling.min_length:
        logits[END] = -math.inf
    generator = torch.Generator().manual_seed(0)
    draws = {
        slow_draw(
            (logits + tolerance * (2 * torch.rand(300, generator=generator) - 1)).softmax(-1).tolist(),
            sampling.top_p,
            key,
            caption=caption,
            position=len(tokens),
        )
        for _ in range(60)
    }
    return len(draws) > 1


@pytest.mark.parametrize("size, fewest, most", [(1e-4, 0, 5), (3e-3, 5, 60)])
def test_captions_differ_only_where_logits_that_close_decide(ending_model, size, fewest, most):
    """Other orders, splits and batches, and unsteady logits: each of 450 captions that differs is checked.

    They have about 5,000 draws, of which errors of 1e-4 change one in 10,000; larger errors show that the test finds
    changes.
    """
    sampling, images, keys = SamplingConfig(num_captions=3, min_length=0), images_of(50), [f"k{i}" for i in range(50)]
    steady, _, _ = fast_captions(ending_model, images, keys, sampling=sampling)
    different, compared = [], 0
    for order, batch_size in (
        ([*range(50)], 4),
        ([*range(49, -1, -1)], 7),
        ([*range(0, 50, 2)], 1),
        ([*range(1, 50, 2)], 16),
    ):
        again, _, _ = fast_captions(
            ending_model,
            images[order],
            [keys[i] for i in order],
            sampling=sampling,
            batch_size=batch_size,
            decoding=unsteady(size),
        )
        for i, captions in zip(order, again, strict=True):
            for number, (caption, other) in enumerate(zip(steady[i], captions, strict=True)):
                compared += 1
                if caption.tokens != other.tokens:
                    first = next(
                        position
                        for position, (a, b) in enumerate(zip(caption.tokens, other.tokens, strict=False))
                        if a != b
                    )
                    different.append((i, number, caption.tokens[:first]))
    assert compared == 450 and fewest <= len(different) <= most, different
    for i, number, tokens in different:
        decided = decided_within(
            ending_model, images[i], sampling, key=keys[i], caption=number, tokens=tokens, tolerance=2 * size
        )
        assert decided, f"caption {number} of {keys[i]} after {tokens}"
    margins = [
        decided_within(
            ending_model,
            images[i],
            sampling,
            key=keys[i],
            caption=0,
            tokens=steady[i][0].tokens[:2],
            tolerance=2 * size,
        )
        for i in range(20)
    ]
    assert sum(margins) < 3  # such a margin is rare, so that finding it at each difference says something


def test_features_are_normalised_and_open_clips(captioner):
    images = images_of(2)
    _, features, _ = fast_captions(
        captioner.model, images, ["a", "b"], sampling=SamplingConfig(num_captions=1), max_length=4
    )
    with torch.no_grad():
        torch.testing.assert_close(features, captioner.model.encode_image(images))
