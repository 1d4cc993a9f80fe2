"""Counts that are exact up to a cap, and above it a sample with the commonest things, against plain counting."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.measures.hash_counts import HashCounts

HASHES = st.integers(0, 2**64 - 1) | st.integers(0, 20).map(lambda index: hash_of(index)) | st.integers(0, 9)
PARTS = st.lists(st.lists(HASHES, max_size=30), min_size=1, max_size=8)


def hash_of(number):
    """The number scrambled: an odd multiple and what it shifts."""
    x = number * 0x9E3779B97F4A7C15 % 2**64
    return (x ^ x >> 29) * 0xBF58476D1CE4E5B9 % 2**64


def counted(hashes, cap=32):
    counts = HashCounts(cap)
    counts.add(np.array(hashes, np.uint64))
    return counts.compact()


def sample(counts):
    """What must not depend on order, split and merges."""
    counts.compact()
    return counts.level, counts.total, dict(zip(counts.hashes.tolist(), counts.counts.tolist()))


def zipf(things, occurrences, seed=0):
    """Hashes of things, of which the r-th comes 1/r as often as the first."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, things + 1)
    draws = rng.choice(things, occurrences, p=shares / shares.sum())
    return np.array([hash_of(number + 1 + 10**6 * seed) for number in range(things)], np.uint64)[draws]


@given(PARTS, st.integers(0, 8))
def test_below_the_cap_counts_are_exact(parts, compact_at):
    counts, expected = HashCounts(), Counter()
    for index, part in enumerate(parts):
        counts.add(np.array(part, np.uint64))
        expected.update(part)
        if index == compact_at:
            counts.compact()
    assert sample(counts) == (0, expected.total(), expected)
    assert counts.hashes.tolist() == sorted(expected)
    assert counts.distinct() == (len(expected), 0)
    assert counts.most()[1] == (max(expected.values(), default=0), 0)


@settings(max_examples=300, deadline=None)
@given(PARTS, st.integers(1, 12), st.integers(0, 2**32))
def test_the_sample_is_that_of_one_pass_however_split_and_merged(parts, cap, seed):
    rng = random.Random(seed)
    everything = [value for part in parts for value in part]
    states = [counted(part, cap) for part in parts]
    while len(states) > 1:
        rng.shuffle(states)
        states[0].merge(states.pop())
    assert sample(states[0]) == sample(counted(everything, cap))


@settings(max_examples=300, deadline=None)
@given(PARTS, st.integers(1, 12))
def test_the_sample_is_all_hashes_below_its_limit_and_could_not_be_larger(parts, cap):
    everything = Counter(value for part in parts for value in part)
    level, _, remaining = sample(counted(list(everything.elements()), cap))
    assert remaining == {value: times for value, times in everything.items() if value < 2 ** (64 - level)}
    assert len(remaining) <= cap
    assert not level or sum(value < 2 ** (65 - level) for value in everything) > cap


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 60).map(hash_of), max_size=60), min_size=1, max_size=8), st.integers(0, 2**32))
def test_counts_of_common_things_lie_within_their_bounds_after_any_merges(parts, seed):
    rng = random.Random(seed)
    everything = Counter(value for part in parts for value in part)
    states = [counted(part, 32) for part in parts]
    while len(states) > 1:
        rng.shuffle(states)
        states[0].merge(states.pop())
    common = states[0].commonest
    assert (common is None) == (states[0].level == 0)
    if common is not None:
        assert common.absent <= everything.total() / (32 // 16 + 1)
        bounds = dict(zip(common.hashes.tolist(), zip(common.low.tolist(), (common.excess + common.absent).tolist())))
        for value, times in everything.items():
            low, high = bounds.get(value, (0, common.absent))
            assert low <= times <= high


def test_the_commonest_thing_is_found_whatever_its_hash():
    rng = np.random.default_rng(0)
    for wanted in (2**64 - 1, 12345, 2**63):
        hashes = np.concatenate([rng.integers(0, 2**64 - 1, 99_000, np.uint64), np.full(1_000, wanted, np.uint64)])
        rng.shuffle(hashes)
        parts = [HashCounts(cap=1 << 12) for _ in range(4)]
        for part, some in zip(parts, np.array_split(hashes, 4)):
            for few in np.array_split(some, 7):
                part.add(few)
        for part in parts[1:]:
            parts[0].merge(part)
        result, times = parts[0].most()
        assert parts[0].level > 0
        assert result == wanted
        assert abs(times.value - 1_000) <= times.error <= 100_000 / (4096 // 16)


def test_different_things_are_estimated_within_the_stated_error():
    departures = []
    for seed in range(40):
        counts = HashCounts(cap=1 << 8)
        counts.add(np.random.default_rng(seed).integers(0, 2**64 - 1, 20_000, np.uint64))
        result = counts.distinct()
        assert result.error / result.value == pytest.approx(1 / len(counts.hashes) ** 0.5, rel=0.02)
        departures.append((result.value - 20_000) / result.error)
    assert 0.6 < np.std(departures) < 1.5 and abs(np.mean(departures)) < 0.6


def test_entropy_and_sums_are_estimated_within_the_stated_error():
    departures = []
    for seed in range(30):
        hashes = zipf(5_000, 60_000, seed)
        exact, sketched = HashCounts(), HashCounts(cap=1 << 10)
        for counts in (exact, sketched):
            for part in np.array_split(hashes, 5):
                counts.add(part)
        assert sketched.compact().level > 0
        for measure in (HashCounts.entropy, lambda counts: counts.sum_of(lambda times: times * (times > 1))):
            truth, result = measure(exact), measure(sketched)
            assert truth.error == 0
            departures.append((result.value - truth.value) / result.error)
    assert 0.5 < np.std(departures) < 1.5 and abs(np.mean(departures)) < 0.6


def test_what_follows_the_counts_is_known_exactly():
    sketched = HashCounts(cap=1 << 8)
    sketched.add(zipf(5_000, 60_000))
    assert sketched.sum_of(lambda counts: 3 * counts).value == pytest.approx(180_000)


@pytest.mark.parametrize("cap", [1 << 8, 1 << 20])
def test_entropy_in_closed_form(cap):
    for things, bits in ((1, 0), (2, 1), (4096, 12)):
        counts = HashCounts(cap)
        counts.add(np.repeat([np.uint64(hash_of(index + 1)) for index in range(things)], 8))
        assert counts.entropy().value == pytest.approx(bits, abs=1e-9)
    assert HashCounts(cap).entropy() is None


@settings(max_examples=100, deadline=None)
@given(PARTS, PARTS)
def test_what_another_state_lacks(parts, others):
    mine, theirs = ([value for part in all_parts for value in part] for all_parts in (parts, others))
    expected = sum(value not in set(theirs) for value in mine)
    assert counted(mine, 1 << 10).lacking_in(counted(theirs, 1 << 10)) == (expected, 0)
    assert counted(mine, 8).lacking_in(counted(mine, 8)).value == pytest.approx(0, abs=1e-6 * (1 + len(mine)))


@pytest.mark.parametrize(("mine", "theirs"), [(40_000, 4_000), (4_000, 40_000)])
def test_what_another_state_lacks_is_estimated_within_the_stated_error(mine, theirs):
    departures = []
    for seed in range(30):
        hashes = zipf(6_000, mine + theirs, seed)
        exact, sketched = ((counted(hashes[:mine], cap), counted(hashes[mine:], cap)) for cap in (1 << 20, 1 << 9))
        assert 0 < sketched[0].level != sketched[1].level > 0
        truth, result = exact[0].lacking_in(exact[1]), sketched[0].lacking_in(sketched[1])
        departures.append((result.value - truth.value) / result.error)
    assert 0.5 < np.std(departures) < 1.5 and abs(np.mean(departures)) < 0.6


def test_all_of_a_sketched_state_is_lacking_in_an_empty_one():
    mine = counted(zipf(6_000, 40_000), 1 << 9)
    result = mine.lacking_in(HashCounts(1 << 9))
    assert result.value == pytest.approx(40_000) and result.error == pytest.approx(0, abs=1e-6)


def test_ranks_and_frequencies_are_close_to_exact_ones():
    counts = counted([hash_of(index) for index in range(1, 5) for _ in range(10 * index)], 1 << 10)
    assert counts.rank_frequency() == [(1, 40), (2, 30), (3, 20), (4, 10)]
    hashes = zipf(5_000, 60_000)
    exact, sketched = (dict(counted(hashes, cap).rank_frequency()) for cap in (1 << 20, 1 << 10))
    assert 20 <= len(exact) <= 40 and min(exact) == 1
    assert max(sketched) == pytest.approx(max(exact), rel=0.2)
    for rank, times in exact.items():
        if rank in sketched:
            assert sketched[rank] == pytest.approx(times, rel=0.25, abs=2)
    assert HashCounts().rank_frequency() == []


def test_states_of_different_caps_do_not_merge():
    with pytest.raises(ValueError, match="caps of 8 and 16"):
        HashCounts(8).merge(HashCounts(16))
