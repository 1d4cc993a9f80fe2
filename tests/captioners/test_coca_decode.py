import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from captioners import coca_decode
from captioners.base import SamplingConfig
from captioners.coca_decode import Decoding, decode, forward_trimmed
from captioners.sampling import ATTEMPTS, LEVELS, race_side, sample_key

PAD, START, END = 0, 1, 2
CONFIGS = {
    "plain": {},
    "layer scale": {"text_cfg__ls_init_value": 0.5, "multimodal_cfg__ls_init_value": 0.5, "vision_cfg__ls_init_value": 0.5},
    "quick gelu": {"quick_gelu": True},
    "no attentional pool": {"vision_cfg__attentional_pool": None, "vision_cfg__width": 32},
    "a longer decoder context": {"multimodal_cfg__context_length": 20},
    "projection with bias": {"text_cfg__proj_bias": True},
}


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def model(request, make_captioner):
    return make_captioner(**CONFIGS[request.param]).model


def images_of(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def tokens_of(rows: int, length: int, lowest: int = 0) -> torch.Tensor:
    """Random tokens, pad tokens among them: a caption may hold CLIP's, which is a word piece."""
    tokens = torch.randint(lowest, 290, (rows, length), generator=torch.Generator().manual_seed(rows))
    if lowest == 0:
        tokens[:, 1:][torch.rand(rows, length - 1, generator=torch.Generator().manual_seed(0)) < 0.2] = PAD
    tokens[:, 0] = START
    return tokens


def captions_of(lengths: list[int], width: int) -> torch.Tensor:
    tokens = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        tokens[row, :length] = tokens_of(len(lengths), width, lowest=3)[row, :length]
        tokens[row, [0, length - 1]] = torch.tensor([START, END])
        if length > 6:
            tokens[row, 3] = PAD
    return tokens


# Training on trimmed captions


@pytest.mark.parametrize("lengths", [[5, 3, 9, 4], [5, 16, 9, 4], [15, 3, 3, 3]], ids=str)
def test_trimmed_forward_equals_open_clips(model, lengths):
    images, full = images_of(4), captions_of(lengths, 16)
    expected = model(images, full)
    for width in (max(lengths), 16):
        ours = forward_trimmed(model, images, full[:, :width])
        length = max(lengths) - 1
        assert ours["logits"].shape[:2] == ours["labels"].shape == (4, length)
        assert torch.equal(ours["labels"], expected["labels"][:, :length])
        assert (expected["labels"][:, length:] == PAD).all()
        for key in ("image_features", "text_features"):
            torch.testing.assert_close(ours[key], expected[key], atol=1e-5, rtol=0)
        torch.testing.assert_close(ours["logits"], expected["logits"][:, :length], atol=1e-5, rtol=0)


def loss_of(outputs: dict) -> torch.Tensor:
    caption = F.cross_entropy(outputs["logits"].flatten(0, 1), outputs["labels"].flatten(), ignore_index=PAD)
    similarity = outputs["image_features"] @ outputs["text_features"].T
    return caption + F.cross_entropy(10 * similarity, torch.arange(len(similarity)))


def test_trimmed_forward_has_open_clips_gradients(model):
    images, full = images_of(4), captions_of([5, 3, 9, 4], 16)
    model.zero_grad()
    loss_of(model(images, full)).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss_of(forward_trimmed(model, images, full)).backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            scale = expected[name].abs().max().clamp(min=1)
            torch.testing.assert_close(parameter.grad / scale, expected[name] / scale, atol=1e-5, rtol=0)
        else:
            assert parameter.grad is None
    model.zero_grad()


def test_naive_trimming_would_move_the_text_features(captioner):
    """What makes the tests above able to fail: the CLS token's position, and the pad column that it sees."""
    model, full = captioner.model, captions_of([5, 3, 9, 4], 16)
    expected = model.encode_text(full)
    for width in (9, 10):
        assert (model.encode_text(full[:, :width]) - expected).abs().max() > 1e-2


# Cached decoding


def test_cached_logits_equal_open_clips_forward(model):
    images, tokens = images_of(3), tokens_of(6, 16)
    with torch.no_grad():
        expected = model(images.repeat_interleave(2, 0), tokens, output_labels=False)["logits"]
        decoding = Decoding(model, model._encode_image(images)[1], limit=16)
        decoding.keep(torch.arange(3).repeat_interleave(2))
        cuts = [0, 4, 5, 6, 9, *range(10, 17)]
        logits = [decoding.extend(tokens[:, a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert expected.std() > 0.5
    assert (torch.cat(logits, dim=1) - expected).abs().max() <= 1e-4


def test_rows_may_leave_and_be_repeated(model):
    images, tokens = images_of(3), tokens_of(6, 12)
    with torch.no_grad():
        decoding = Decoding(model, model._encode_image(images)[1], limit=16)
        decoding.extend(tokens[:1, :4].expand(3, -1))
        decoding.keep(torch.tensor([0, 0, 1, 2, 2, 2]))  # 2, 1 and 3 captions
        tokens[:, :4] = tokens[0, :4]
        decoding.extend(tokens[:, 4:8])
        kept = torch.tensor([1, 4, 3, 5])  # the middle picture leaves, two rows change places
        decoding.keep(kept)
        logits = decoding.extend(tokens[kept, 8:])
        expected = model(images[[0, 2, 2, 2]], tokens[kept], output_labels=False)["logits"][:, 8:]
    assert len(decoding.cross[0][0]) == 2
    assert (logits - expected).abs().max() <= 1e-4


# Whole captions, against an obvious loop


def slow_logits(model, image, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(image[None], torch.tensor([tokens]), output_labels=False)["logits"]
    return logits[0, -1]


def slow_draw(weights: list[float], top_p: float, key: str, caption: int, position: int) -> int:
    """The token drawn, in plain Python: exponential races of blocks, drawn again until within the nucleus."""
    side, total = race_side(len(weights)), sum(weights)
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    kept = {token for i, token in enumerate(order) if sum(weights[t] for t in order[:i]) < top_p * total}
    for attempt in range(ATTEMPTS + 1):
        if attempt == ATTEMPTS:
            weights = [weight if token in kept else 0.0 for token, weight in enumerate(weights)]
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
        if first in kept:
            return first
    raise AssertionError("the last attempt draws within the nucleus")


def numpy_words(key: str, *counter: int) -> list[int]:
    """NumPy's four words of this key and counter; NumPy adds 1 to a counter first, so it is given one less."""
    low, high = (word % 2**64 for word in sample_key(0, key))
    whole = sum(word << 64 * i for i, word in enumerate(counter))
    return np.random.Philox(counter=(whole - 1) % 2**256, key=low + (high << 64)).random_raw(4).tolist()


def slow_caption(model, image, sampling, key="", caption=0, max_length=17):
    """Tokens, log-probability, truncated: one caption, nothing cached, no processors but bans and temperature."""
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
            token = slow_draw(scores.softmax(-1).tolist(), sampling.top_p, key, caption, len(tokens))
        tokens.append(token)
        logprob += logits.log_softmax(-1)[token].item()
        if token == END:
            return tokens, logprob, False
    return [*tokens, END], logprob, True


def fast_captions(model, images, keys, sampling, max_length=17, **options):
    never = [PAD, START, *range(290, 300)]
    return decode(
        model, images, keys, sampling, prefix=[START], end_id=END, never=never, max_length=max_length, **options
    )


@pytest.fixture(scope="module")
def ending_model(make_captioner):
    """A model whose captions differ between pictures, and end at many lengths."""
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
    _, captions = fast_captions(ending_model, images, list("abcdefgh"), sampling, max_length)
    expected = [slow_caption(ending_model, image, sampling, max_length=max_length) for image in images]
    for (decoded,), wanted in zip(captions, expected, strict=True):
        assert_same(decoded, wanted)
    if max_length == 17:
        assert len({len(tokens) for tokens, _, _ in expected}) > 1


@pytest.mark.parametrize("values", [{}, {"temperature": 0.7, "top_p": 0.5}, {"top_p": 0.05}, {"top_p": 1.0}], ids=str)
def test_sampled_captions_are_those_of_an_obvious_loop_with_the_same_draws(ending_model, values):
    sampling, images, keys = SamplingConfig(num_captions=3, **values), images_of(3), ["a", "b", "ü"]
    _, captions = fast_captions(ending_model, images, keys, sampling, first_index=2)
    assert len({len(decoded.tokens) for picture in captions for decoded in picture}) > 1
    for image, key, of_picture in zip(images, keys, captions, strict=True):
        for i, decoded in enumerate(of_picture):
            assert_same(decoded, slow_caption(ending_model, image, sampling, key, 2 + i))


def test_the_last_token_is_never_fed_back(ending_model, monkeypatch):
    fed = []
    extend = Decoding.extend
    monkeypatch.setattr(Decoding, "extend", lambda self, tokens: fed.append(tokens.shape) or extend(self, tokens))
    sampling = SamplingConfig(num_captions=2)
    _, captions = fast_captions(ending_model, images_of(2), ["a", "b"], sampling, 9)
    longest = max(len(decoded.tokens) for picture in captions for decoded in picture)
    assert longest == 9
    assert sum(columns for _, columns in fed) == 7  # of nine, the last is forced and the one before it not fed
    assert fed[0][0] == 2  # one row per picture until captions differ


def test_finished_captions_leave_and_decoding_stops_early(ending_model, monkeypatch):
    fed = []
    extend = Decoding.extend
    monkeypatch.setattr(Decoding, "extend", lambda self, tokens: fed.append(len(tokens)) or extend(self, tokens))
    with torch.no_grad():
        monkeypatch.setattr(coca_decode, "choose", ending_choices({0: 3, 1: 3, 2: 3, 3: 5, 4: 3, 5: 6}))
    _, captions = fast_captions(ending_model, images_of(3), list("abc"), SamplingConfig(num_captions=2))
    assert [len(decoded.tokens) for picture in captions for decoded in picture] == [3, 3, 3, 5, 3, 6]
    assert fed == [3, 6, 2, 2, 1]
    assert not any(decoded.truncated for picture in captions for decoded in picture)


def ending_choices(lengths: dict[int, int]):
    """A `choose` under which caption i ends with lengths[i] tokens; it knows captions by their second token."""

    def choose(logits, sequences, sampling, **_):
        length = sequences.shape[1] + 1
        which = range(len(sequences)) if length == 2 else [row[1] - 100 for row in sequences.tolist()]
        tokens = [END if lengths[i] == length else 100 + i for i in which]
        return torch.tensor(tokens), torch.zeros(len(tokens))

    return choose


def test_features_are_normalised_and_open_clips(captioner):
    images = images_of(2)
    features, _ = fast_captions(captioner.model, images, ["a", "b"], SamplingConfig(num_captions=1), 4)
    with torch.no_grad():
        torch.testing.assert_close(features, captioner.model.encode_image(images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(make_captioner, dtype):
    """A mistake of the mask or of positions moves logits by more than 1; half precision by a few hundredths."""
    model = make_captioner().model
    images, tokens = images_of(2), tokens_of(2, 12)
    with torch.no_grad():
        expected = model(images, tokens, output_labels=False)["logits"]
        model.to(dtype)
        decoding = Decoding(model, model._encode_image(images.to(dtype))[1], limit=16)
        logits = torch.cat([decoding.extend(tokens[:, i : i + 1]) for i in range(12)], dim=1)
    assert logits.dtype == dtype
    assert (logits.float() - expected).abs().mean() < 0.05 * expected.std()
