"""Lexical spread, for whole batches of captions at once.

N-grams are 64-bit hashes here: two different ones of ten million share a hash with a chance of about 3 in a million.

P: pictures   C: captions   W: words   G: n-grams   R: runs (one n-gram in one caption)
"""

import numpy as np

from diversity.words.tokens import Tokens

MBLEU_SMOOTHING = (
    "precisions without a match become 1/(2^k n-grams), k = 1, 2, ... (mteval-v13a, sacrebleu's default, "
    "nltk's method3); captions of fewer than four words use the orders they have"
)

# Odd 64-bit constants (Steele et al. 2014, SplitMix64), so that place in the n-gram matters.
_GOLDEN, _MIX1, _MIX2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _scramble(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64: 64 random-looking bits for each number, no two numbers alike."""
    x = numbers.astype(np.uint64) * _GOLDEN + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


_FACTORS = _scramble(np.arange(4096)) | np.uint64(1)


def ngram_hashes(tokens: Tokens, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Every n-gram's hash (G,) and its caption (G,), in order; none crosses from one caption into the next."""
    first, last = tokens.caption_of_word[: len(tokens.hashes) - n + 1], tokens.caption_of_word[n - 1 :]
    inside = first == last
    hashes = np.zeros(len(last), np.uint64)
    for place in range(n):
        hashes += tokens.hashes[place : place + len(last)] * _FACTORS[place]
    return hashes[inside], last[inside]


def caption_hashes(tokens: Tokens) -> np.ndarray:
    """A hash of each caption's words (C,): equal where captions are equal but for case, punctuation and spacing."""
    place = np.arange(len(tokens.hashes)) - np.repeat(tokens.caption_ends[:-1], tokens.lengths)
    terms = np.concatenate([np.zeros(1, np.uint64), tokens.hashes * _scramble(place)])
    sums = np.cumsum(terms, dtype=np.uint64)  # wraps round, and so do the differences: exact
    return _scramble(sums[tokens.caption_ends[1:]] - sums[tokens.caption_ends[:-1]] + tokens.lengths.astype(np.uint64))


def first_in_picture(tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Hash and picture of each caption that does not repeat an earlier one of its picture.

    The rest are exact duplicates, compared by their words.
    """
    hashes, pictures = caption_hashes(tokens), tokens.picture_of_caption
    _, first = np.unique(hashes ^ _scramble(pictures), return_index=True)
    return hashes[first], pictures[first]


def ngram_overlap(tokens: Tokens, n: int) -> tuple[np.ndarray, np.ndarray]:
    """How each caption's n-grams recur in the other captions of its picture.

    Returns matched (C,), the sum over a caption's n-grams of min(count in it, greatest count in another caption of the
    picture), which is BLEU's clipped count, and distinct (P,), the different n-grams of each picture.
    """
    hashes, captions = ngram_hashes(tokens, n)
    low = np.uint64(len(tokens.lengths).bit_length())  # bits for the caption, so that one plain sort orders both
    keys = (hashes ^ _scramble(tokens.picture_of_caption)[captions]) >> low << low | captions.astype(np.uint64)
    keys.sort()
    new_ngram = _changes(keys >> low)
    captions = (keys & ((np.uint64(1) << low) - np.uint64(1))).astype(int)
    distinct = np.bincount(tokens.picture_of_caption[captions[new_ngram]], minlength=tokens.pictures)

    again = ~(new_ngram & np.append(new_ngram[1:], True))  # an n-gram that stands once in the picture matches nothing
    keys, captions, new_ngram = keys[again], captions[again], new_ngram[again]
    if not len(keys):
        return np.zeros(len(tokens.lengths)), distinct
    run_starts = np.flatnonzero(_changes(keys))
    counts = np.diff(np.append(run_starts, len(keys)))  # (R,) of one n-gram in one caption
    ngram_starts = np.flatnonzero(new_ngram[run_starts])  # where in the runs an n-gram begins
    of_ngram = np.cumsum(new_ngram[run_starts]) - 1  # (R,)

    most = np.maximum.reduceat(counts, ngram_starts)[of_ngram]
    is_most = counts == most
    tied = np.add.reduceat(is_most, ngram_starts, dtype=int)[of_ngram] > 1
    second = np.maximum.reduceat(np.where(is_most, 0, counts), ngram_starts)[of_ngram]
    in_another = np.where(is_most & ~tied, second, most)
    return np.bincount(captions[run_starts], np.minimum(counts, in_another), len(tokens.lengths)), distinct


def _changes(values: np.ndarray) -> np.ndarray:
    """Which of the values (N,) differ from the one before; the first does."""
    return np.concatenate([[True], values[1:] != values[:-1]])[: len(values)]


def within_picture(tokens: Tokens) -> dict[str, np.ndarray]:
    """`length` of each picture's captions, and spread among them: `div_1`, `div_2`, `mbleu_4`, `duplicates`; (P,) each.

    NaN where undefined; one caption has no spread. length = words / captions. duplicates = 1 - different captions of
    the picture / its captions, in [0, 1 - 1/k] for k captions, lower is more spread; compared by words, so case and
    punctuation do not hide one. Div-n = different n-grams of the picture's captions / their words, in [0, 1], higher
    is more spread; undefined without a word (Shetty et al. 2017, "Speaking the Same Language").
    mBLEU-4 = mean over the captions of BLEU-4 against the other captions of the picture, in [0, 1], lower is more
    spread; undefined for a single caption (Shetty et al. 2017; BLEU: Papineni et al. 2002; smoothing: `MBLEU_SMOOTHING`).
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
            **{name: np.where(several, found, np.nan) for name, found in spread.items()},
        }


def _bleu(matched: list[np.ndarray], lengths: np.ndarray, reference_lengths: np.ndarray) -> np.ndarray:
    """Smoothed sentence BLEU-4 of each caption (C,) from its clipped counts of each order, each (C,)."""
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
    """For each caption (C,), the length among the picture's others that is closest to its own, the shorter of two.

    Among the lengths of a picture in order, it is the one before or the one after; 0 for a single caption.
    """
    order = np.lexsort((tokens.lengths, tokens.picture_of_caption))
    lengths, pictures = tokens.lengths[order], tokens.picture_of_caption[order]
    same = pictures[1:] == pictures[:-1]
    none = np.full(1, -1)
    before = np.concatenate([none, np.where(same, lengths[:-1], -1)])[: len(order)]
    after = np.concatenate([np.where(same, lengths[1:], -1), none])[: len(order)]
    nearer = (before < 0) | ((after >= 0) & (after - lengths < lengths - before))
    closest = np.empty(len(order), int)
    closest[order] = np.maximum(np.where(nearer, after, before), 0)
    return closest
