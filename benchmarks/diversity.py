"""Measures of caption sets against their peers: `python -m benchmarks.diversity --case NAME`, the last line is one JSON object.

Captions are COCO's, from CAPSMITH_DATA, five per picture: pictures drawn with replacement, and in their captions each third
content word, a lower-case one of more than three letters, gives way to one drawn from all content words, so that n-grams stay
varied.

`lexical-1m`: 1M captions. ratio: for each measure that a peer has too, the fastest peer's time, summed, ÷ the time of one
`CaptionAccumulator` for all its measures, in a process of its own; peak_mb is that process's peak, captions included. The peers,
in an environment of their own, get words that are split already; see `diversity_peer.py`. Values are compared first:
- distinct-n: PyPI's diversity 0.3.1 sums the four orders, lets n-grams cross from one caption into the next and rounds to three
  digits; ours of all captions as one text is equal;
- vocabulary: lexicalrichness 0.5.1 is equal;
- mBLEU-4: nltk and sacrebleu 2.6 are equal; pycocoevalcap 1.2 does not smooth, and is equal where each order has a match.
Left out: diversity's self-repetition, a mean of logarithms that needs two passes, where ours is the share of 4-grams that recur
(it also joins lists in quadratic time); vdtk 0.3.0, a wheel of 522 MB, whose BLEU is pycocoevalcap's and whose word counts need
spaCy's models.

`set-10m`: 10M captions, half in each of two processes, and self-CIDEr on 10,000 pictures. ratio: seconds ÷ regex_seconds, which
the regular expression \\w+|[^\\w\\s] alone takes for the same captions in the same processes; twice: seconds ÷ those of half the
captions. Drawing the captions is not timed. peak_mb: the peaks of the three processes, summed.

`vendi-100k` and `within-image-10k`: see `vendi.py` and `within_image.py`.
"""

import argparse
import json
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from diversity.measures.accumulate import CaptionAccumulator
from diversity.measures.lexical import within_picture
from diversity.words.tokens import encode

DATA = Path(os.environ.get("CAPSMITH_DATA", "../shared/data"))
CAPTIONS, SHARD = 5, 10_000  # captions of a picture, pictures of a shard
PROCESSES = 2
PINS = ("lexicalrichness==0.5.1", "nltk==3.10.4", "sacrebleu==2.6.0", "numpy==2.3.5", "scipy==1.16.3")
ALONE = (
    "diversity==0.3.1",
    "pycocoevalcap==1.2",
)  # without what they ask for: torch through sentence-transformers, pycocotools
FAST_REGEX = re.compile(r"\w+|[^\w\s]")
CHECKED = 2_000  # pictures on which values are compared and the fastest peer is found
MBLEU_PEERS = ("nltk", "sacrebleu", "pycocoevalcap")


class Coco(NamedTuple):
    """The captions of COCO pictures, flat: words W of captions C, V different ones."""

    vocabulary: list[str]
    words: np.ndarray  # (W,) in the vocabulary, as written
    ends: np.ndarray  # (C + 1,) first word of each caption, then W
    content: np.ndarray  # (V,) which words of the vocabulary are content words


@cache
def coco() -> Coco:
    pictures = json.loads((DATA / "coco1000.json").read_text(encoding="utf-8"))
    captions = [caption.split() for picture in pictures for caption in picture["references"][:CAPTIONS]]
    vocabulary = sorted({word for caption in captions for word in caption})
    number = {word: at for at, word in enumerate(vocabulary)}
    content = np.array([len(word) > 3 and word.isalpha() and word.islower() for word in vocabulary])
    words = np.array([number[word] for caption in captions for word in caption])
    return Coco(vocabulary, words, np.cumsum([0, *map(len, captions)]), content)


def drawn(shard: int) -> list[list[str]]:
    """The captions of a shard's pictures."""
    source, draw = coco(), np.random.default_rng(shard)
    captions = (
        draw.integers((len(source.ends) - 1) // CAPTIONS, size=SHARD)[:, None] * CAPTIONS + np.arange(CAPTIONS)
    ).ravel()
    lengths = np.diff(source.ends)[captions]
    ends = np.cumsum(lengths)
    words = source.words[np.arange(ends[-1]) + np.repeat(source.ends[captions] - (ends - lengths), lengths)]
    swapped = source.content[words] & (draw.random(len(words)) < 1 / 3)
    words[swapped] = draw.choice(source.words[source.content[source.words]], swapped.sum())
    text = [source.vocabulary[word] for word in words.tolist()]
    flat = [" ".join(text[end - length : end]) for end, length in zip(ends.tolist(), lengths.tolist())]
    return [flat[at : at + CAPTIONS] for at in range(0, len(flat), CAPTIONS)]


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    found = function(*arguments)
    return time.perf_counter() - start, found


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- lexical-1m ----------------------------------------------------------------------------------------------------


def lexical_1m() -> dict[str, Any]:
    """Ours in a fresh process, then the peers' values, then the fastest of them on everything."""
    from benchmarks.side_by_side import Peer  # imports torch, which the other cases shall not pay for

    shards = range(20)
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process,
    ):
        file = Path(folder) / "captions.txt"
        print("ours", flush=True)
        seconds, peak, result = process.submit(lexical_of_ours, shards, file).result()
        print(f"ours: {seconds:.1f} s, {peak:.0f} MB", flush=True)
        with Peer(peer_python(), "diversity_peer.py", captions=str(file), group=CAPTIONS) as peer:
            fastest = check_values(peer, result)
            cost = {}
            for measure, name in (("distinct", "diversity"), ("vocabulary", "lexicalrichness"), ("mbleu_4", fastest)):
                print(f"{measure} of all captions by {name}", flush=True)
                cost[f"{measure}, {name}"] = peer.ask({"measure": measure, "peer": name, "pictures": None})["seconds"]
    return {
        "ratio": round(sum(cost.values()) / seconds, 2),
        "captions": result["captions"],
        "seconds": round(seconds, 2),
        "peer_seconds": {name: round(value, 1) for name, value in cost.items()},
        "peak_mb": round(peak),
    }


def peer_python() -> Path:
    """The interpreter of an environment with the peers' pins, made once under runs/peers."""
    folder = Path("runs/peers/diversity")
    python, done, wanted = folder / "bin" / "python", folder / "requirements.txt", [*PINS, *ALONE]
    if not done.exists() or done.read_text().split() != wanted:
        print(f"making the peers' environment {folder}: {', '.join(wanted)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        for packages in (PINS, ["--no-deps", *ALONE]):
            subprocess.run(
                [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True
            )
        done.write_text("\n".join(wanted))
    return python


def lexical_of_ours(shards: Sequence[int], file: Path) -> tuple[float, float, dict[str, Any]]:
    """Our time and peak, and what we found; the captions' words are left in the file, a caption a line."""
    groups = [group for shard in shards for group in drawn(shard)]

    def measure() -> dict[str, Any]:
        accumulator = CaptionAccumulator()
        accumulator.update(groups)
        return accumulator.result()

    seconds, result = timed(measure)
    peak = peak_mb()
    file.write_text("".join(" ".join(text) + "\n" for text in split(groups)), encoding="utf-8")
    return seconds, peak, result


def split(groups: Sequence[Sequence[str]]) -> list[list[str]]:
    tokens = encode(groups)
    return [
        tokens.words[start:end] for start, end in zip(tokens.caption_ends.tolist(), tokens.caption_ends[1:].tolist())
    ]


def check_values(peer: Any, result: dict[str, Any]) -> str:
    """Raises `RuntimeError` where a peer's values differ though they should not; returns the fastest peer of mBLEU."""
    groups = drawn(0)[:CHECKED]
    as_one = CaptionAccumulator()
    as_one.update([[" ".join(word for text in split(groups) for word in text)]])
    ours = sum(as_one.result()[f"distinct_{n}"] for n in (1, 2, 3, 4))
    theirs = peer.ask({"measure": "distinct", "peer": "diversity", "pictures": CHECKED})["values"]
    _equal("distinct, diversity: all captions as one text", round(ours, 3), theirs, 1e-12)
    theirs = peer.ask({"measure": "vocabulary", "peer": "lexicalrichness", "pictures": None})["values"]
    _equal("vocabulary, lexicalrichness", result["vocabulary"], theirs, 0)
    ours = within_picture(encode(groups))["mbleu_4"]
    seconds = {}
    for name in MBLEU_PEERS:
        answer = peer.ask({"measure": "mbleu_4", "peer": name, "pictures": CHECKED})
        where = np.array(answer["comparable"])
        _equal(
            f"mbleu_4, {name}, {where.sum()} of {len(where)} pictures",
            ours[where],
            np.array(answer["values"])[where],
            1e-7,
        )
        seconds[name] = answer["seconds"]
    print(
        f"mbleu_4 of {CHECKED} pictures: {', '.join(f'{name} {value:.2f} s' for name, value in seconds.items())}",
        flush=True,
    )
    return min(seconds, key=seconds.get)


def _equal(what: str, ours: Any, theirs: Any, tolerance: float) -> None:
    apart = float(np.abs(np.subtract(ours, theirs)).max())
    print(f"{what}: up to {apart:.1e} apart", flush=True)
    if not apart <= tolerance:
        raise RuntimeError(f"{what}: {ours} and the peer's {theirs} are {apart} apart")


# --- set-10m -------------------------------------------------------------------------------------------------------


def set_10m() -> dict[str, Any]:
    """Half the captions, then all."""
    half, whole = count_set(100), count_set(200)
    return {
        "ratio": round(whole["seconds"] / whole["regex_seconds"], 2),
        "twice": round(whole["seconds"] / half["seconds"], 2),
        "half_seconds": half["seconds"],
        **whole,
    }


def count_set(shards: int) -> dict[str, Any]:
    """Seconds for the measures of so many shards, and for the regular expression alone; the peak of all processes."""
    from benchmarks.within_image import measure

    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        counted = list(pool.map(count_shards, (range(worker, shards, PROCESSES) for worker in range(PROCESSES))))
        accumulators, regex, ours, peaks = zip(*counted)
        sample = drawn(0)
        finish, result = timed(_merged, accumulators)
        self_cider = timed(measure, sample)[0]
    return {
        "captions": result["captions"],
        "seconds": round(max(ours) + finish + self_cider, 1),
        "regex_seconds": round(max(regex), 1),
        "merge_seconds": round(finish, 1),
        "self_cider_seconds": round(self_cider, 1),
        "peak_mb": round(sum(peaks) + peak_mb()),
        "distinct_4": round(result["distinct_4"], 4),
        "sketched": {name: float(f"{error:.1g}") for name, error in result["sketched"].items()},
    }


def count_shards(shards: Sequence[int]) -> tuple[CaptionAccumulator, float, float, float]:
    """What was counted, seconds of the regular expression and of ours, and the peak in MB."""
    accumulator, regex, ours = CaptionAccumulator(), 0.0, 0.0
    for shard in tqdm(
        shards, f"shards {shards.start}, {shards.start + shards.step}, …", position=shards.start, mininterval=2
    ):
        groups = drawn(shard)
        regex += timed(lambda: [FAST_REGEX.findall(caption) for group in groups for caption in group])[0]
        ours += timed(accumulator.update, groups)[0]
    return accumulator, regex, ours, peak_mb()


def _merged(accumulators: Sequence[CaptionAccumulator]) -> dict[str, Any]:
    first, *others = accumulators
    for other in others:
        first.merge(other)
    return first.result()


def within_image_10k() -> dict[str, Any]:
    from benchmarks.within_image import (
        within_image_10k as case,  # imports nltk, which the other cases shall not pay for
    )

    return case()


def vendi_100k() -> dict[str, Any]:
    from benchmarks.vendi import vendi_100k as case

    return case()


CASES = {"lexical-1m": lexical_1m, "set-10m": set_10m, "vendi-100k": vendi_100k, "within-image-10k": within_image_10k}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, required=True)
    args = parser.parse_args()
    print(json.dumps({"case": args.case, **CASES[args.case]()}))


if __name__ == "__main__":
    main()
