"""The choice of the next token on a GPU, as one Triton kernel without a sort and without waiting for the host.

It draws the same tokens as `captioners.decoding.sampling.choose`: the same Philox words, the same race, the same
accept-reject sampling for top-p. Sums are computed in another order, so draws may differ where rounding decides.
Each program chooses the token of one row. It reads the row once, and once more for each attempt at top-p.

Dimensions: R rows (captions in flight), V vocabulary, S side of the race: S**4 >= V.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# Triton's type annotations lack the options of a launch, such as num_warps, and plain numbers for a constexpr.

import torch
import triton
import triton.language as tl
from torch import Tensor

from captioners.base import SamplingConfig
from captioners.decoding.sampling import ATTEMPTS, race_side

TRIES = tl.constexpr(ATTEMPTS)


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """The same as `captioners.decoding.sampling.philox`, for uint64 words."""
    for _ in range(10):
        high0, low0 = tl.umulhi(c0, 0xD2E7470EE14C6C93), c0 * 0xD2E7470EE14C6C93
        high2, low2 = tl.umulhi(c2, 0xCA5A826395121157), c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B97F4A7C15, k1 + 0xBB67AE8584CAA73B
    return c0, c1, c2, c3


@triton.jit
def _pick(sums, level: tl.constexpr, attempt, position, caption, k0, k1, SIDE: tl.constexpr, LANES: tl.constexpr):
    """The index of the sum that wins this level of the race, of the first SIDE of the sums (LANES,)."""
    lanes = tl.arange(0, LANES)
    word = level * SIDE + lanes
    zero = tl.zeros([LANES], tl.uint64)
    w0, w1, w2, w3 = _philox(
        (word // 4).to(tl.uint64), zero + attempt.to(tl.uint64), zero + position, zero + caption, zero + k0, zero + k1
    )
    which = word % 4
    words = tl.where(which == 0, w0, tl.where(which == 1, w1, tl.where(which == 2, w2, w3)))
    uniform = ((words >> 11).to(tl.float64) + 0.5) * 1.1102230246251565e-16  # 2**-53
    clocks = sums.to(tl.float64) / -tl.log(uniform)
    return tl.argmax(tl.where(lanes < SIDE, clocks, -1.0), axis=0)


@triton.jit
def _heated(scores, tokens, inside, temperature, HEATED: tl.constexpr):
    score = tl.load(scores + tokens, mask=inside, other=float("-inf")).to(tl.float32)
    return score / temperature if HEATED else score  # a division would take as long as all other operations


@triton.jit
def _weights(scores, tokens, inside, highest, temperature, end_id, too_short, least, HEATED: tl.constexpr):
    """The weights of tokens: 0 for weights below `least`, and for the end token if the caption is too short."""
    weight = tl.exp(_heated(scores, tokens, inside, temperature, HEATED) - highest)
    return tl.where(((tokens == end_id) & too_short) | (weight < least), 0.0, weight)


@triton.jit
def _draw(
    sums,
    scores,
    highest,
    temperature,
    end_id,
    too_short,
    least,
    attempt,
    position,
    caption,
    k0,
    k1,
    V,
    HEATED: tl.constexpr,
    SIDE: tl.constexpr,
    LANES: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One draw: the first level of the race among `sums` (LANES,), then three more levels within the winning block."""
    lanes = tl.arange(0, LANES)
    first = _pick(sums, 0, attempt, position, caption, k0, k1, SIDE, LANES)
    start = first * (SIDE * SIDE * SIDE)
    wide = tl.arange(0, WIDE)  # WIDE >= SIDE**2
    tokens = start + lanes[:, None] * (SIDE * SIDE) + wide[None, :]
    inside = (lanes[:, None] < SIDE) & (wide[None, :] < SIDE * SIDE) & (tokens < V)
    sums = tl.sum(_weights(scores, tokens, inside, highest, temperature, end_id, too_short, least, HEATED), axis=1)
    second = _pick(sums, 1, attempt, position, caption, k0, k1, SIDE, LANES)
    start += second * (SIDE * SIDE)
    tokens = start + lanes[:, None] * SIDE + lanes[None, :]
    inside = (lanes[:, None] < SIDE) & (lanes[None, :] < SIDE) & (tokens < V)
    sums = tl.sum(_weights(scores, tokens, inside, highest, temperature, end_id, too_short, least, HEATED), axis=1)
    third = _pick(sums, 2, attempt, position, caption, k0, k1, SIDE, LANES)
    start += third * SIDE
    inside = (lanes < SIDE) & (start + lanes < V)
    sums = _weights(scores, start + lanes, inside, highest, temperature, end_id, too_short, least, HEATED)
    fourth = _pick(sums, 3, attempt, position, caption, k0, k1, SIDE, LANES)
    return tl.minimum(start + fourth, V - 1)


@triton.jit
def _mass_above(scores, highest, temperature, end_id, too_short, weight, V, HEATED: tl.constexpr, BLOCK: tl.constexpr):
    """The mass of the tokens whose weight is above `weight`."""
    mass = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        weights = _weights(scores, tokens, tokens < V, highest, temperature, end_id, too_short, 0.0, HEATED)
        mass += tl.where(weights > weight, weights, 0.0)
    return tl.sum(mass, axis=0)


@triton.jit
def _largest(scores, V, BLOCK: tl.constexpr):
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, V, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        highest = tl.maximum(highest, tl.load(scores + tokens, mask=tokens < V, other=float("-inf")).to(tl.float32))
    return tl.max(highest, axis=0)


@triton.jit
def _mass(logits, largest, V, BLOCK: tl.constexpr):
    mass = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        mass += tl.exp(tl.load(logits + tokens, mask=tokens < V, other=float("-inf")).to(tl.float32) - largest)
    return tl.sum(mass, axis=0)


@triton.jit
def _ban(logits, scores, banned, count, LANES: tl.constexpr):
    """Set the scores of the tokens `banned` (count,) to -inf.

    Returns the mass of their logits, relative to the largest of these, and the largest.
    """
    highest, mass = -1e30, 0.0
    for start in range(0, count, LANES):
        index = start + tl.arange(0, LANES)
        ids = tl.load(banned + index, mask=index < count, other=0)
        logit = tl.load(logits + ids, mask=index < count, other=float("-inf")).to(tl.float32)
        new_highest = tl.maximum(highest, tl.max(logit, axis=0))
        mass = mass * tl.exp(highest - new_highest) + tl.sum(tl.exp(logit - new_highest), axis=0)
        highest = new_highest
        tl.store(scores + ids, tl.full([LANES], float("-inf"), tl.float32), mask=index < count)
    tl.debug_barrier()  # all threads of the program must see what the others have written
    return mass, highest


@triton.jit
def _read(
    scores,
    temperature,
    end_id,
    too_short,
    V,
    HEATED: tl.constexpr,
    SIDE: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Read the scores once; return the masses (LANES,) of SIDE blocks, the mass of all scores, and the largest score.

    Blocks are those of the race's first level. Masses are relative to the largest score; while reading, to the largest
    so far. The end token of a caption that is too short counts in the mass of all scores only.
    """
    lanes, within = tl.arange(0, LANES), tl.arange(0, BLOCK)
    sums, all_masses, highest = tl.zeros([LANES], tl.float32), tl.zeros([BLOCK], tl.float32), -1e30
    for block in range(SIDE):
        tokens = block * (SIDE * SIDE * SIDE) + within
        score = _heated(scores, tokens, (within < SIDE * SIDE * SIDE) & (tokens < V), temperature, HEATED)
        new_highest = tl.maximum(highest, tl.max(score, axis=0))
        shrink, weight = tl.exp(highest - new_highest), tl.exp(score - new_highest)
        all_masses = all_masses * shrink + weight
        weights = tl.where((tokens == end_id) & too_short, 0.0, weight)
        sums = tl.where(lanes == block, tl.sum(weights, axis=0), sums * shrink)
        highest = new_highest
    return sums, tl.sum(all_masses, axis=0), highest


@triton.jit
def _nucleus(
    scores,
    highest,
    temperature,
    end_id,
    too_short,
    mass,
    V,
    HEATED: tl.constexpr,
    SIDE: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The masses (LANES,) of the blocks within the nucleus, and the least weight in the nucleus.

    The nucleus is the most probable tokens that hold `mass`. Its least weight is found by bisection of the bits of a
    float32.
    """
    low, high = 0, 0x3F800000  # the bits of 0.0 and 1.0, the largest possible weight
    while low < high:
        middle = (low + high) // 2
        weight = (middle + tl.zeros([], tl.int32)).to(tl.float32, bitcast=True)
        if _mass_above(scores, highest, temperature, end_id, too_short, weight, V, HEATED, BLOCK) < mass:
            high = middle
        else:
            low = middle + 1
    least = (high + tl.zeros([], tl.int32)).to(tl.float32, bitcast=True)
    lanes, within = tl.arange(0, LANES), tl.arange(0, BLOCK)
    sums = tl.zeros([LANES], tl.float32)
    for block in range(SIDE):
        tokens = block * (SIDE * SIDE * SIDE) + within
        inside = (within < SIDE * SIDE * SIDE) & (tokens < V)
        weights = _weights(scores, tokens, inside, highest, temperature, end_id, too_short, least, HEATED)
        sums = tl.where(lanes == block, tl.sum(weights, axis=0), sums)
    return sums, least


@triton.jit
def _choose(
    logits,
    scores,
    banned,
    keys,
    draws,
    positions,
    tokens,
    logprobs,
    banned_count,
    end_id,
    min_length,
    temperature,
    top_p,
    V,
    SAME: tl.constexpr,
    HEATED: tl.constexpr,
    WHOLE: tl.constexpr,
    SIDE: tl.constexpr,
    LANES: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Choose the token of a row.

    SAME: scores are the logits themselves. HEATED: the temperature is not 1. WHOLE: top_p is 1.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    scores += row * V
    k0, k1 = tl.load(keys + 2 * row).to(tl.uint64), tl.load(keys + 2 * row + 1).to(tl.uint64)
    length = tl.load(positions + row)
    caption, position = tl.load(draws + row).to(tl.uint64), length.to(tl.uint64)
    too_short = length < min_length

    banned_mass, largest_banned = _ban(logits, scores, banned, banned_count, LANES)
    sums, mass, highest = _read(scores, temperature, end_id, too_short, V, HEATED, SIDE, LANES, BLOCK)
    largest = highest
    if HEATED or not SAME:
        largest = _largest(logits, V, BLOCK)
        mass = _mass(logits, largest, V, BLOCK)
    if SAME:  # the mass lacks the banned tokens, whose logits were overwritten
        new_largest = tl.maximum(largest, largest_banned)
        mass = mass * tl.exp(largest - new_largest) + banned_mass * tl.exp(largest_banned - new_largest)
        largest = new_largest
    total = tl.sum(sums, axis=0)

    token = end_id
    if total != 0:  # otherwise no token is allowed, and the row ends
        attempt, going, least = 0, 1, tl.zeros([], tl.float32)
        while going == 1:
            if attempt == TRIES:  # all attempts were rejected: draw from the nucleus
                sums, least = _nucleus(
                    scores, highest, temperature, end_id, too_short, top_p * total, V, HEATED, SIDE, LANES, BLOCK
                )
            token = _draw(
                sums,
                scores,
                highest,
                temperature,
                end_id,
                too_short,
                least,
                attempt + tl.zeros([], tl.int32),
                position,
                caption,
                k0,
                k1,
                V,
                HEATED,
                SIDE,
                LANES,
                WIDE,
            )
            if WHOLE or attempt == TRIES:
                going = 0
            else:
                weight = _weights(scores, token, token < V, highest, temperature, end_id, too_short, 0.0, HEATED)
                if (
                    _mass_above(scores, highest, temperature, end_id, too_short, weight, V, HEATED, BLOCK)
                    < top_p * total
                ):
                    going = 0
            attempt += 1
    tl.store(tokens + row, token.to(tl.int64))
    chosen = tl.load(logits + token).to(tl.float32) - largest
    tl.store(logprobs + row, chosen - tl.log(mass))


def choose_by_kernel(
    logits: Tensor,
    scores: Tensor,
    sampling: SamplingConfig,
    *,
    keys: Tensor,
    draws: Tensor,
    lengths: Tensor,
    banned: Tensor,
    end_id: int,
) -> tuple[Tensor, Tensor]:
    """Draw tokens (R,) as `captioners.decoding.sampling.choose` does; return them and their log-probabilities (R,).

    logits: (R, V), contiguous, of any floating dtype. Log-probabilities are under their softmax.
    scores: (R, V), the logits after the processors that come before temperature, or the logits themselves. Those of
        banned tokens are overwritten.
    keys: Philox keys (R, 2). draws: caption indices (R,). lengths: of the captions (R,).
    banned: token ids that are never chosen.
    """
    rows, vocabulary = logits.shape
    tokens, logprobs = torch.empty_like(lengths), logits.new_empty(rows, dtype=torch.float32)
    side = race_side(vocabulary)
    block = triton.next_power_of_2(side**3)
    _choose[(rows,)](
        logits,
        scores,
        banned,
        keys,
        draws,
        lengths,
        tokens,
        logprobs,
        len(banned),
        end_id,
        sampling.min_length,
        sampling.temperature,
        sampling.top_p,
        vocabulary,
        SAME=scores is logits,
        HEATED=sampling.temperature != 1,
        WHOLE=sampling.top_p == 1,
        SIDE=side,
        LANES=triton.next_power_of_2(side),
        WIDE=triton.next_power_of_2(side**2),
        BLOCK=block,
        num_warps=max(4, block // 1024),  # 32 values in a thread; with 128, compiling takes ten seconds
    )
    return tokens, logprobs
