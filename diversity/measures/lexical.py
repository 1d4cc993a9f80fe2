"""Measure the lexical spread of whole batches of captions at once.

N-grams are 64-bit hashes here. Among ten million different n-grams, the chance that any two share a hash is about 3 in
a million.

P: pictures   C: captions   W: words   G: n-grams   R: runs (one n-gram in one caption)
"""

import numpy as np

from diversity.words.tokens import Tokens

MBLEU_SMOOTHING = (
    "precisions without a match become 1/(2^k n-grams), k = 1, 2, ... (mteval-v13a, sacrebleu's default, "
    "nltk's method3); captions of fewer than four words use the orders they have"
)

# Odd 64-bit constants of SplitMix64 (Steele et al. 2014); they make the hash depend on the position in the n-gram.
_GOLDEN, _MIX1, _MIX2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _scramble(numbers: np.ndarray) -> np.ndarray:
    """Return 64 random-looking bits for each number, different ones for different numbers (SplitMix64)."""
    x = numbers.astype(np.uint64) * _GOLDEN + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


_FACTORS = _scramble(np.arange(4096)) | np.uint64(1)


def ngram_hashes(tokens: Tokens, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash (G,) and the caption (G,) of every n-gram in order; no n-gram spans two captions."""
    first, last = tokens.caption_of_word[: len(tokens.hashes) - n + 1], tokens.caption_of_word[n - 1 :]
    inside = first == last
    hashes = np.zeros(len(last), np.uint64)
    for position in range(n):
        hashes += tokens.hashes[position : position + len(last)] * _FACTORS[position]
    return hashes[inside], last[inside]


def caption_hashes(tokens: Tokens) -> np.ndarray:
    """Return a hash of each caption's words (C,); case, punctuation and spacing make no difference."""
    positions = np.arange(len(tokens.hashes)) - np.repeat(tokens.caption_ends[:-1], tokens.lengths)
    terms = np.concatenate([np.zeros(1, np.uint64), tokens.hashes * _scramble(positions)])
    sums = np.cumsum(terms, dtype=np.uint64)  # wraps round, as the differences do, so these are exact
    return _scramble(sums[tokens.caption_ends[1:]] - sums[tokens.caption_ends[:-1]] + tokens.lengths.astype(np.uint64))


def first_in_picture(tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash and the picture of each caption that does not repeat an earlier caption of its picture.

    All other captions are exact duplicates, compared by their words.
    """
    hashes, pictures = caption_hashes(tokens), tokens.picture_of_caption
    _, first = np.unique(hashes ^ _scramble(pictures), return_index=True)
    return hashes[first], pictures[first]


def ngram_overlap(tokens: Tokens, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Count how many n-grams of each caption recur in the other captions of its picture.

    Returns matched (C,), the sum over a caption's n-grams of min(count in it, greatest count in another caption of the
    picture), which is BLEU's clipped count, and distinct (P,), the number of different n-grams of each picture.
    """
    hashes, captions = ngram_hashes(tokens, n)
    low = np.uint64(len(tokens.lengths).bit_length())  # low bits hold the caption, so that a plain sort orders both
    keys = (hashes ^ _scramble(tokens.picture_of_caption)[captions]) >> low << low | captions.astype(np.uint64)
    keys.sort()
    new_ngram = _changes(keys >> low)
    captions = (keys & ((np.uint64(1) << low) - np.uint64(1))).astype(int)
    distinct = np.bincount(tokens.picture_of_caption[captions[new_ngram]], minlength=tokens.pictures)

    recurs = ~(new_ngram & np.append(new_ngram[1:], True))  # an n-gram that occurs once in the picture matches nothing
    keys, captions, new_ngram = keys[recurs], captions[recurs], new_ngram[recurs]
    if not len(keys):
        return np.zeros(len(tokens.lengths)), distinct
    run_starts = np.flatnonzero(_changes(keys))
    counts = np.diff(np.append(run_starts, len(keys)))  # (R,) how often the caption has the n-gram
    ngram_starts = np.flatnonzero(new_ngram[run_starts])  # the first run of each n-gram
    ngram_of_run = np.cumsum(new_ngram[run_starts]) - 1  # (R,)

    largest = np.maximum.reduceat(counts, ngram_starts)[ngram_of_run]
    is_largest = counts == largest
    tied = np.add.reduceat(is_largest, ngram_starts, dtype=int)[ngram_of_run] > 1
    second = np.maximum.reduceat(np.where(is_largest, 0, counts), ngram_starts)[ngram_of_run]
    in_another = np.where(is_largest & ~tied, second, largest)
    return np.bincount(captions[run_starts], np.minimum(counts, in_another), len(tokens.lengths)), distinct


def _changes(values: np.ndarray) -> np.ndarray:
    """Return which of the values (N,) differ from the value before; the first value does."""
    return np.concatenate([[True], values[1:] != values[:-1]])[: len(values)]


def within_picture(tokens: Tokens) -> dict[str, np.ndarray]:
    """Return `length`, `div_1`, `div_2`, `mbleu_4` and `duplicates` of each picture's captions, each (P,).

    NaN where undefined; all but the length are undefined for a single caption. length = words / captions. duplicates =
    1 - different captions of the picture / its captions, in [0, 1 - 1/k] for k captions, lower is more spread;
    captions are compared by their words, so case and punctuation do not hide a duplicate. Div-n = different n-grams of
    the picture's captions / their words, in [0, 1], higher is more spread; undefined without a word (Shetty et al.
    2017, "Speaking the Same Language"). mBLEU-4 = mean over the captions of BLEU-4 against the other captions of the
    picture, in [0, 1], lower is more spread (Shetty et al. 2017; BLEU: Papineni et al. 2002; smoothing:
    `MBLEU_SMOOTHING`).
    """
    picture_words = np.add.reduceat(np.append(tokens.lengths, 0), tokens.picture_ends[:-1])
    picture_words = np.where(tokens.counts > 0, picture_words, 0)
    _, unique = first_in_picture(tokens)
    several = tokens.counts > 1
    overlaps = [ngram_overlap(tokens, n) for n in (1, 2, 3, 4)]
    with np.errstate(invalid="ignore", divide="ignore"):
        div_1, div_2 = (distinct / picture_words for _, distinct in overlaps[:2])
        bleu = _bleu([matched for matched, _ in overlaps], tokens.lengths, _closest_lengths(tokens))
        mbleu = np.bincount(tokens.picture_of_caption, bleu, tokens.pictures) / tokens.counts
        duplicates = (tokens.counts - np.bincount(unique, minlength=tokens.pictures)) / tokens.counts
        spread = {"div_1": div_1, "div_2": div_2, "mbleu_4": mbleu, "duplicates": duplicates}
        return {
            "length": picture_words / tokens.counts,
            **{name: np.where(several, values, np.nan) for name, values in spread.items()},
        }


def _bleu(matched: list[np.ndarray], lengths: np.ndarray, reference_lengths: np.ndarray) -> np.ndarray:
    """Return the smoothed sentence BLEU-4 of each caption (C,) from its clipped counts for each n, each (C,)."""
    logs, empty_orders = np.zeros(len(lengths)), np.zeros(len(lengths))
    for n, hits in enumerate(matched, start=1):
        totals = lengths - n + 1
        empty_orders += hits == 0
        precision = np.where(hits == 0, 0.5**empty_orders, hits) / np.maximum(totals, 1)
        logs += np.where(totals > 0, np.log(precision), 0)
    orders = np.clip(lengths, 1, 4)
    brevity = np.minimum(0, 1 - reference_lengths / np.maximum(lengths, 1))
    return np.where(matched[0] > 0, np.exp(logs / orders + brevity), 0)


def _closest_lengths(tokens: Tokens) -> np.ndarray:
    """Return for each caption (C,) the closest length among the other captions of its picture, the shorter one of two.

    0 for a single caption. In the sorted lengths of a picture the closest one is next to the caption's own.
    """
    order = np.lexsort((tokens.lengths, tokens.picture_of_caption))
    lengths, pictures = tokens.lengths[order], tokens.picture_of_caption[order]
    same = pictures[1:] == pictures[:-1]
    missing = np.full(1, -1)
    before = np.concatenate([missing, np.where(same, lengths[:-1], -1)])[: len(order)]
    after = np.concatenate([np.where(same, lengths[1:], -1), missing])[: len(order)]
    nearer = (before < 0) | ((after >= 0) & (after - lengths < lengths - before))
    closest = np.empty(len(order), int)
    closest[order] = np.maximum(np.where(nearer, after, before), 0)
    return closest
