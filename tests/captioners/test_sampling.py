"""Statistical tests with fixed seeds, so that each always passes or always fails.

`ALPHA` is the probability that a test of correct code fails with another seed.
"""

import math
import random

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from captioners.base import SamplingConfig
from captioners.decoding.sampling import (
    LEVELS,
    ban,
    ban_repeated_ngrams,
    choose,
    exponentials,
    keep_top_k,
    nucleus,
    penalise_repetition,
    philox,
    race,
    race_side,
    sample_key,
    sample_sorted_top_p,
    sample_top_p,
)

ALPHA = 1e-6  # false-alarm rate of each chi-square test
END, PAD, START = 2, 0, 1


def signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def chi_square_threshold(freedom: int) -> float:
    """Wilson and Hilferty's approximation of the chi-square quantile at 1 - ALPHA (z = 4.753)."""
    return freedom * (1 - 2 / (9 * freedom) + 4.753 * math.sqrt(2 / (9 * freedom))) ** 3


def assert_drawn_from(draws: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Chi-square over tokens of at least 10 expected draws, the others pooled; tokens without mass are never drawn."""
    counts = draws.bincount(minlength=len(probabilities)).double()
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities.double() * len(draws)
    common = expected >= 10
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    if len(expected) > 1:
        assert statistic < chi_square_threshold(len(expected) - 1)


def noise_of(rows: int, vocabulary: int, position: int = 0):
    """The random variates of `rows` captions of one sample."""
    keys = torch.tensor([sample_key(0, "sample")]).expand(rows, -1)
    captions, side = torch.arange(rows), race_side(vocabulary)
    return lambda rows, attempt: exponentials(
        keys[rows], captions[rows], torch.full((len(rows),), position), attempt=attempt, side=side
    )


def logits_of(vocabulary: int, spread: float = 2.0, seed: int = 0) -> torch.Tensor:
    return spread * torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed))


# Philox


def numpy_words(counter: int, key: int) -> list[int]:
    """NumPy's four words of a 256-bit counter. NumPy adds 1 to it first, so it gets one less."""
    return np.random.Philox(counter=(counter - 1) % 2**256, key=key).random_raw(4).tolist()


def test_philox_gives_numpys_integers():
    generator = random.Random(0)
    cases = [(generator.getrandbits(256), generator.getrandbits(128)) for _ in range(200)]
    cases += [(0, 0), (2**256 - 1, 2**128 - 1), (2**64, 2**63), (2**255, 1)]
    for counter, key in cases:
        counter_words = torch.tensor([signed(counter >> 64 * i & 2**64 - 1) for i in range(4)])
        key_words = torch.tensor([signed(key & 2**64 - 1), signed(key >> 64)])
        assert [word % 2**64 for word in philox(counter_words, key_words).tolist()] == numpy_words(counter, key)


def test_draws_are_numpys_of_block_attempt_position_and_caption():
    side, keys = 3, torch.tensor([sample_key(5, "a"), sample_key(5, "ü\udc80")])
    variates = exponentials(
        keys, torch.tensor([4, 2**40]), torch.tensor([7, 0]), attempt=torch.tensor([3, 3]), side=side
    )
    for row, (caption, position) in enumerate([(4, 7), (2**40, 0)]):
        low, high = (word % 2**64 for word in keys[row].tolist())
        counters = (block + (3 << 64) + (position << 128) + (caption << 192) for block in range(3))
        words = [word for counter in counters for word in numpy_words(counter, low + (high << 64))]
        expected = [-math.log(((word >> 11) + 0.5) / 2**53) for word in words]
        assert variates[row].flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_draws_depend_on_no_other_row():
    keys = torch.tensor([sample_key(1, name) for name in "abcd"])
    captions, positions = torch.tensor([0, 5, 2, 1]), torch.tensor([3, 3, 9, 1])
    together = exponentials(keys, captions, positions, attempt=torch.zeros_like(positions), side=6)
    order = torch.tensor([2, 0, 3])
    apart = [
        exponentials(keys[i, None], captions[i, None], positions[i, None], attempt=torch.tensor([0]), side=6)
        for i in order
    ]
    assert torch.equal(together[order], torch.cat(apart))


def test_each_name_of_a_draw_changes_it():
    def draw(seed=0, key="a", column="", caption=0, position=0, attempt=0):
        keys = torch.tensor([sample_key(seed, key, column)])
        return exponentials(
            keys, torch.tensor([caption]), torch.tensor([position]), attempt=torch.tensor([attempt]), side=6
        ).flatten()

    columns = [
        draw(column=column) for column in ("syn_text_a", "syn_text_b", "syn_text_" + 50 * "a", "syn_text_" + 51 * "a")
    ]
    draws = [draw(), *columns, draw(seed=1), draw(key="b"), draw(caption=1), draw(position=1), draw(attempt=1)]
    every = torch.cat(draws)
    assert len(every.unique()) == len(every)


def test_exponentials_have_mean_and_variance_one():
    indices = noise_of(2000, 49408)(
        torch.arange(2000), torch.zeros(2000).long()
    ).flatten()  # 120,000: 5 standard errors are 0.0145 and 0.041
    assert indices.mean().item() == pytest.approx(1, abs=0.0145)
    assert indices.var().item() == pytest.approx(1, abs=0.041)
    assert indices.min() > 0


# The race


@pytest.mark.parametrize("vocabulary", [2, 17, 300])
def test_race_draws_in_proportion_to_the_weights(vocabulary):
    weights = 10 * logits_of(vocabulary).softmax(-1)
    weights[vocabulary // 2] = 0
    draws = race(
        weights.expand(20_000, -1), noise_of(20_000, vocabulary)(torch.arange(20_000), torch.zeros(20_000).long())
    )
    assert_drawn_from(draws, weights / weights.sum())


def test_race_reaches_the_last_token_of_clips_vocabulary():
    weights = torch.zeros(3, 49408)
    weights[0, 0] = weights[1, 49407] = weights[2, 47250] = 1e-30
    assert race(weights, noise_of(3, 49408)(torch.arange(3), torch.zeros(3).long())).tolist() == [0, 49407, 47250]
    assert race_side(49408) ** LEVELS >= 49408 > (race_side(49408) - 1) ** LEVELS


def test_rounding_of_logits_hardly_ever_flips_a_draw():
    """With noise of 1e-5, a draw of a race of four levels changes with a probability below 4e-5."""
    logits = torch.randn(2000, 5000, generator=torch.Generator().manual_seed(0))
    moved = logits + 1e-5 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    noise = noise_of(2000, 5000)(torch.arange(2000), torch.zeros(2000).long())
    assert (race(logits.softmax(-1), noise) != race(moved.softmax(-1), noise)).sum() < 5


# Top-p


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_top_p_draws_from_the_renormalised_nucleus(top_p):
    probabilities = logits_of(60).softmax(-1)
    draws = sample_top_p(probabilities.expand(30_000, -1) * 7, top_p, noise_of(30_000, 60))
    ordered, order = probabilities.sort(descending=True)
    nucleus_weights = torch.zeros(60)
    for i, token in enumerate(order):
        if ordered[:i].sum() < top_p:
            nucleus_weights[token] = ordered[i]
    assert_drawn_from(draws, nucleus_weights / nucleus_weights.sum())


@pytest.mark.parametrize("top_p", [0.001, 0.3, 0.9, 0.999])
def test_nucleus_is_transformers(top_p):
    logits = torch.stack([logits_of(200, spread, seed) for seed, spread in enumerate((0.1, 1, 3, 9))])
    ours = nucleus(logits.softmax(-1), top_p) > 0
    theirs = TopPLogitsWarper(top_p)(None, logits) > -math.inf
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("sample", [sample_top_p, sample_sorted_top_p])
def test_equally_probable_tokens_are_kept_together(sample):
    weights = torch.tensor([[0.4, 0.2, 0.2, 0.2]])
    draws = sample(weights.expand(3000, -1), 0.5, noise_of(3000, 4))
    assert_drawn_from(draws, weights[0])


@pytest.mark.parametrize("top_p", [0.02, 0.4, 0.9, 0.999])
def test_the_gpus_way_draws_the_same_tokens(top_p):
    """With a top_p of 0.02 most rows are rejected eight times, and the last draw is from the sorted nucleus."""
    weights = torch.stack([logits_of(300, seed=seed).softmax(-1) for seed in range(500)])
    assert torch.equal(
        sample_sorted_top_p(weights, top_p, noise_of(500, 300)), sample_top_p(weights, top_p, noise_of(500, 300))
    )


# Processors


def test_top_k_is_transformers():
    logits = torch.stack([logits_of(50, seed=seed) for seed in range(5)])
    for k in (1, 7, 50):
        theirs = TopKLogitsWarper(k)(None, logits) > -math.inf
        assert torch.equal(keep_top_k(logits.softmax(-1), k) > 0, theirs)


def test_repetition_penalty_is_transformers():
    logits = torch.stack([logits_of(50, seed=seed) for seed in range(5)])
    used = torch.randint(0, 50, (5, 12), generator=torch.Generator().manual_seed(0))
    for penalty in (0.5, 1.3):
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(used, logits)
        assert torch.equal(penalise_repetition(logits, used, penalty), theirs)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 4, 40])
def test_no_repeat_ngram_is_transformers(size, length):
    sequences = torch.randint(0, 4, (30, length), generator=torch.Generator().manual_seed(size))
    logits = torch.zeros(30, 4)
    theirs = NoRepeatNGramLogitsProcessor(size)(sequences, logits.clone())
    ban_repeated_ngrams(logits, -math.inf, sequences, size=size)
    assert torch.equal(logits, theirs)
    if length == 40 and size < 5:
        assert (logits == -math.inf).any()


@pytest.mark.parametrize("length", [1, 4, 5, 6])
def test_min_length_is_transformers(length):
    sequences = torch.full((3, length), 9)
    logits = torch.zeros(3, 12)
    lengths, nothing = torch.full((3,), length), torch.tensor([]).long()
    sampling = SamplingConfig()
    ours = ban(logits.clone(), -math.inf, sequences, sampling=sampling, lengths=lengths, banned=nothing, end_id=END)
    assert torch.equal(ours, MinLengthLogitsProcessor(5, END)(sequences, logits))


def transformers_distribution(logits, sequences, sampling):
    """The distribution of transformers' processors, in transformers' order, over tokens that are not banned."""
    logits = logits.clone()
    logits[:, [PAD, START]] = -math.inf
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram_size))
    processors.append(MinLengthLogitsProcessor(sampling.min_length, END))
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        processors.append(TopKLogitsWarper(sampling.top_k))
    processors.append(TopPLogitsWarper(sampling.top_p))
    return processors(sequences, logits).softmax(-1)


def choose_from(logits, sequences, sampling, noise, lengths=None):
    lengths = torch.full((len(sequences),), sequences.shape[1]) if lengths is None else lengths
    banned = torch.tensor([PAD, START])
    return choose(logits, sequences, sampling, lengths=lengths, banned=banned, end_id=END, noise=noise)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7, "top_p": 0.7},
        {"top_k": 5, "top_p": 1.0},
        {"top_k": 9, "top_p": 0.6, "temperature": 1.5},
        {"repetition_penalty": 1.5, "top_p": 0.8},
        {"no_repeat_ngram_size": 2, "min_length": 9, "top_p": 1.0},
        {"repetition_penalty": 0.7, "no_repeat_ngram_size": 1, "temperature": 2.0, "top_k": 20, "top_p": 0.3},
    ],
    ids=str,
)
def test_choice_has_the_distribution_of_transformers_processors(values):
    sampling, rows = SamplingConfig(**values), 20_000
    logits = logits_of(40).expand(rows, -1)
    sequences = torch.tensor([START, 5, 9, 7, 9, 5, 9]).expand(rows, -1)
    tokens, logprobs = choose_from(logits, sequences, sampling, noise=noise_of(rows, 40))
    assert_drawn_from(tokens, transformers_distribution(logits[:1], sequences[:1], sampling)[0])
    torch.testing.assert_close(logprobs, logits[0].log_softmax(-1)[tokens])  # of the model, whatever the processors


@pytest.mark.parametrize(
    "values", [{}, {"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 3, "min_length": 4}], ids=str
)
def test_start_tokens_before_a_shorter_sequence_change_nothing(values):
    sampling = SamplingConfig(repetition_penalty=1.5, **values)
    logits = logits_of(9).repeat(40, 1)
    for sequence in ([START], [START, 5], [START, 5, 6], [START, 5, 6, 5, 6], [START, 5, 5, 5]):
        plain = torch.tensor(sequence).expand(40, -1)
        filled = torch.nn.functional.pad(plain, (4, 0), value=START)
        lengths = torch.full((40,), len(sequence))
        expected = choose_from(logits, plain, sampling, noise=noise_of(40, 9))
        for ours, theirs in zip(
            choose_from(logits, filled, sampling, noise=noise_of(40, 9), lengths=lengths), expected, strict=True
        ):
            assert torch.equal(ours, theirs)


def test_greedy_takes_the_best_allowed_token():
    logits = logits_of(40).repeat(2, 1)
    logits[:, PAD], logits[:, 9], logits[:, 5] = 99, 9, 8
    sampling = SamplingConfig(strategy="greedy", no_repeat_ngram_size=1)
    sequences = torch.tensor([[START, 9, 7], [START, 7, 7]])
    before = logits.clone()
    tokens, logprobs = choose_from(logits, sequences, sampling, noise=None)
    assert tokens.tolist() == [5, 9]
    torch.testing.assert_close(logprobs, logits.log_softmax(-1)[[0, 1], [5, 9]])
    assert torch.equal(logits, before)


@pytest.mark.parametrize("strategy", ["greedy", "sample"])
def test_a_row_that_may_not_go_on_ends(strategy):
    logits = torch.zeros(1, 5)
    sequences = torch.tensor([[START, 3, 4]])
    sampling = SamplingConfig(strategy=strategy, no_repeat_ngram_size=1)
    tokens, logprobs = choose_from(logits, sequences, sampling, noise=noise_of(1, 5))
    assert tokens.tolist() == [END]
    assert logprobs.item() == pytest.approx(math.log(1 / 5))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_show_in_the_log_probability(bad):
    logits = torch.zeros(2, 5)
    logits[1, 3] = bad
    _, logprobs = choose_from(logits, torch.ones(2, 1).long(), SamplingConfig(), noise=noise_of(2, 5))
    assert logprobs.isnan().tolist() == [False, True]
