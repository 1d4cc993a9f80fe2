"""The choice of the next token on a GPU as one Triton kernel: a program a row, with no sort and no wait for the host.

It draws what `captioners.decoding.sampling.choose` draws: the same Philox words, the same race, the same accept-reject for top-p. Sums are
added in another order, so that draws differ only where rounding decides. A row is read once, and once more for each
draw of top-p.

Dimensions: R rows (captions in flight), V vocabulary, S side of the race: S**4 >= V.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# Triton's types know neither the options of a launch, such as num_warps, nor that a constexpr takes a plain number.

import torch
import triton
import triton.language as tl
from torch import Tensor

from captioners.base import SamplingConfig
from captioners.decoding.sampling import ATTEMPTS, race_side

TRIES = tl.constexpr(ATTEMPTS)


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """`captioners.decoding.sampling.philox` of uint64 words."""
    for _ in range(10):
        high0, low0 = tl.umulhi(c0, 0xD2E7470EE14C6C93), c0 * 0xD2E7470EE14C6C93
        high2, low2 = tl.umulhi(c2, 0xCA5A826395121157), c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B97F4A7C15, k1 + 0xBB67AE8584CAA73B
    return c0, c1, c2, c3


@triton.jit
def _pick(sums, level: tl.constexpr, attempt, position, caption, k0, k1, SIDE: tl.constexpr, LANES: tl.constexpr):
    """Which of the sums (LANES,), of which the first SIDE count, wins this level of the race."""
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
def _heated(scores, at, inside, temperature, HEATED: tl.constexpr):
    score = tl.load(scores + at, mask=inside, other=float("-inf")).to(tl.float32)
    return score / temperature if HEATED else score  # a division takes as long as all else


@triton.jit
def _weights(scores, at, inside, most, temperature, end_id, too_short, least, HEATED: tl.constexpr):
    """What each token at these places weighs: nothing where it weighs less than `least`, or is an end that comes too early."""
    weight = tl.exp(_heated(scores, at, inside, temperature, HEATED) - most)
    return tl.where(((at == end_id) & too_short) | (weight < least), 0.0, weight)


@triton.jit
def _draw(
    sums,
    scores,
    most,
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
    """One draw: the race of the first level among `sums` (LANES,), then three more within the block that wins."""
    lanes = tl.arange(0, LANES)
    first = _pick(sums, 0, attempt, position, caption, k0, k1, SIDE, LANES)
    start = first * (SIDE * SIDE * SIDE)
    wide = tl.arange(0, WIDE)  # WIDE >= SIDE**2
    at = start + lanes[:, None] * (SIDE * SIDE) + wide[None, :]
    inside = (lanes[:, None] < SIDE) & (wide[None, :] < SIDE * SIDE) & (at < V)
    sums = tl.sum(_weights(scores, at, inside, most, temperature, end_id, too_short, least, HEATED), axis=1)
    second = _pick(sums, 1, attempt, position, caption, k0, k1, SIDE, LANES)
    start += second * (SIDE * SIDE)
    at = start + lanes[:, None] * SIDE + lanes[None, :]
    inside = (lanes[:, None] < SIDE) & (lanes[None, :] < SIDE) & (at < V)
    sums = tl.sum(_weights(scores, at, inside, most, temperature, end_id, too_short, least, HEATED), axis=1)
    third = _pick(sums, 2, attempt, position, caption, k0, k1, SIDE, LANES)
    start += third * SIDE
    inside = (lanes < SIDE) & (start + lanes < V)
    sums = _weights(scores, start + lanes, inside, most, temperature, end_id, too_short, least, HEATED)
    fourth = _pick(sums, 3, attempt, position, caption, k0, k1, SIDE, LANES)
    return tl.minimum(start + fourth, V - 1)


@triton.jit
def _mass_above(scores, most, temperature, end_id, too_short, weight, V, HEATED: tl.constexpr, BLOCK: tl.constexpr):
    """The mass of the tokens that weigh more than `weight`."""
    mass = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        each = _weights(scores, at, at < V, most, temperature, end_id, too_short, 0.0, HEATED)
        mass += tl.where(each > weight, each, 0.0)
    return tl.sum(mass, axis=0)


@triton.jit
def _largest(scores, V, BLOCK: tl.constexpr):
    most = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.load(scores + at, mask=at < V, other=float("-inf")).to(tl.float32))
    return tl.max(most, axis=0)


@triton.jit
def _mass(logits, largest, V, BLOCK: tl.constexpr):
    mass = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mass += tl.exp(tl.load(logits + at, mask=at < V, other=float("-inf")).to(tl.float32) - largest)
    return tl.sum(mass, axis=0)


@triton.jit
def _ban(logits, scores, never, count, LANES: tl.constexpr):
    """Gives the tokens `never` (count,) a score that no draw has; the mass of their logits, relative to the largest of them, and that."""
    most, mass = -1e30, 0.0
    for start in range(0, count, LANES):
        at = start + tl.arange(0, LANES)
        ids = tl.load(never + at, mask=at < count, other=0)
        logit = tl.load(logits + ids, mask=at < count, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(most, tl.max(logit, axis=0))
        mass = mass * tl.exp(most - larger) + tl.sum(tl.exp(logit - larger), axis=0)
        most = larger
        tl.store(scores + ids, tl.full([LANES], float("-inf"), tl.float32), mask=at < count)
    tl.debug_barrier()  # all threads of the program see what each has written
    return mass, most


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
    """In one reading: the masses (LANES,) of the SIDE blocks of the first level, that of all scores, an end that comes too early
    included, and the largest score, which masses are relative to: to the largest so far, until a larger one comes."""
    lanes, within = tl.arange(0, LANES), tl.arange(0, BLOCK)
    sums, whole, most = tl.zeros([LANES], tl.float32), tl.zeros([BLOCK], tl.float32), -1e30
    for block in range(SIDE):
        at = block * (SIDE * SIDE * SIDE) + within
        score = _heated(scores, at, (within < SIDE * SIDE * SIDE) & (at < V), temperature, HEATED)
        larger = tl.maximum(most, tl.max(score, axis=0))
        shrink, weight = tl.exp(most - larger), tl.exp(score - larger)
        whole = whole * shrink + weight
        each = tl.where((at == end_id) & too_short, 0.0, weight)
        sums = tl.where(lanes == block, tl.sum(each, axis=0), sums * shrink)
        most = larger
    return sums, tl.sum(whole, axis=0), most


@triton.jit
def _nucleus(
    scores,
    most,
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
    """The least weight of the most probable tokens that hold the mass, found by halving its bits; and their blocks' masses (LANES,)."""
    low, high = 0, 0x3F800000  # of 0 and 1: no weight is more
    while low < high:
        middle = (low + high) // 2
        weight = (middle + tl.zeros([], tl.int32)).to(tl.float32, bitcast=True)
        if _mass_above(scores, most, temperature, end_id, too_short, weight, V, HEATED, BLOCK) < mass:
            high = middle
        else:
            low = middle + 1
    least = (high + tl.zeros([], tl.int32)).to(tl.float32, bitcast=True)
    lanes, within = tl.arange(0, LANES), tl.arange(0, BLOCK)
    sums = tl.zeros([LANES], tl.float32)
    for block in range(SIDE):
        at = block * (SIDE * SIDE * SIDE) + within
        inside = (within < SIDE * SIDE * SIDE) & (at < V)
        each = _weights(scores, at, inside, most, temperature, end_id, too_short, least, HEATED)
        sums = tl.where(lanes == block, tl.sum(each, axis=0), sums)
    return sums, least


@triton.jit
def _choose(
    logits,
    scores,
    never,
    keys,
    draws,
    positions,
    tokens,
    logprobs,
    never_count,
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
    """Chooses the token of a row: SAME where scores are the logits, HEATED where the temperature is not 1, WHOLE where top_p is 1."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    scores += row * V
    k0, k1 = tl.load(keys + 2 * row).to(tl.uint64), tl.load(keys + 2 * row + 1).to(tl.uint64)
    length = tl.load(positions + row)
    caption, position = tl.load(draws + row).to(tl.uint64), length.to(tl.uint64)
    too_short = length < min_length

    banned, largest_banned = _ban(logits, scores, never, never_count, LANES)
    sums, whole, most = _read(scores, temperature, end_id, too_short, V, HEATED, SIDE, LANES, BLOCK)
    largest = most
    if HEATED or not SAME:
        largest = _largest(logits, V, BLOCK)
        whole = _mass(logits, largest, V, BLOCK)
    if SAME:  # the logits were read without those of the banned tokens
        larger = tl.maximum(largest, largest_banned)
        whole = whole * tl.exp(largest - larger) + banned * tl.exp(largest_banned - larger)
        largest = larger
    total = tl.sum(sums, axis=0)

    token = end_id
    if total != 0:  # else nothing may follow, and the row ends
        attempt, going, least = 0, 1, tl.zeros([], tl.float32)
        while going == 1:
            if attempt == TRIES:  # rejected as often as that: drawn from the nucleus
                sums, least = _nucleus(
                    scores, most, temperature, end_id, too_short, top_p * total, V, HEATED, SIDE, LANES, BLOCK
                )
            token = _draw(
                sums,
                scores,
                most,
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
                weight = _weights(scores, token, token < V, most, temperature, end_id, too_short, 0.0, HEATED)
                if _mass_above(scores, most, temperature, end_id, too_short, weight, V, HEATED, BLOCK) < top_p * total:
                    going = 0
            attempt += 1
    tl.store(tokens + row, token.to(tl.int64))
    chosen = tl.load(logits + token).to(tl.float32) - largest
    tl.store(logprobs + row, chosen - tl.log(whole))


def choose_by_kernel(
    logits: Tensor,
    scores: Tensor,
    sampling: SamplingConfig,
    *,
    keys: Tensor,
    draws: Tensor,
    lengths: Tensor,
    never: Tensor,
    end_id: int,
) -> tuple[Tensor, Tensor]:
    """Tokens (R,), and their log-probabilities (R,) under the softmax of the logits: of draws, as `captioners.decoding.sampling.choose` has them.

    logits (R, V), of any floating dtype, contiguous; scores (R, V): what the processors made of them, or the logits themselves, before
    temperature and top-p; keys (R, 2), draws (caption indices) and lengths (R,); never: the tokens that are never chosen, whose scores
    are overwritten.
    """
    rows, vocabulary = logits.shape
    tokens, logprobs = torch.empty_like(lengths), logits.new_empty(rows, dtype=torch.float32)
    side = race_side(vocabulary)
    _choose[(rows,)](
        logits,
        scores,
        never,
        keys,
        draws,
        lengths,
        tokens,
        logprobs,
        len(never),
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
        BLOCK=triton.next_power_of_2(side**3),
        num_warps=4,
    )
    return tokens, logprobs
