"""Measures of caption sets, compared with other packages: `python -m benchmarks.diversity --case NAME`.

The last line of the output is a JSON object. Captions are COCO's, from CAPSMITH_DATA, five per picture. Pictures are
drawn with replacement. So that n-grams stay varied, every third content word (a lower-case word of more than three
letters) is replaced by one that is drawn from all content words.

`lexical-1m`: 1M captions. `ratio` is the sum, over the measures that a peer also has, of the fastest peer's time,
divided by the time of one `CaptionAccumulator` for all its measures, in a process of its own. `peak_mb` is the peak
memory of that process, captions included. The peers run in an environment of their own and get words that are already
split; see `diversity_peer.py`. Values are compared first: - distinct-n: PyPI's diversity 0.3.1 sums the four orders,
lets n-grams cross from one caption into the next, and rounds to three digits; ours, computed for all captions as one
text, is equal; - vocabulary: lexicalrichness 0.5.1 is equal; - mBLEU-4: nltk and sacrebleu 2.6 are equal;
pycocoevalcap 1.2 does not smooth, and is equal if each order has a match. Two peers are left out. diversity's
self-repetition is a mean of logarithms that needs two passes, while ours is the share of 4-grams that recur (it also
joins lists in quadratic time). vdtk 0.3.0 is a wheel of 522 MB whose BLEU is that of pycocoevalcap, and whose word
counts need the models of spaCy.

`set-10m`: 10M captions, half in each of two processes, and self-CIDEr on 10,000 pictures. `ratio` is our time divided
by `regex_seconds`, the time that the regular expression \\w+|[^\\w\\s] alone takes for the same captions in the same
processes. `twice` is our time divided by our time for half the captions. Drawing the captions is not timed. `peak_mb`
is the sum of the peaks of the three processes.

`vendi-100k`, `within-image-10k` and `vdtk-1k`: see `vendi.py`, `within_image.py` and `diversity_vdtk.py`.
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
CAPTIONS, SHARD = 5, 10_000  # captions per picture, pictures per shard
PROCESSES = 2
PINS = ("lexicalrichness==0.5.1", "nltk==3.10.4", "sacrebleu==2.6.0", "numpy==2.3.5", "scipy==1.16.3")
ALONE = (
    "diversity==0.3.1",
    "pycocoevalcap==1.2",
)  # installed without their dependencies: sentence-transformers (which needs torch) and pycocotools
FAST_REGEX = re.compile(r"\w+|[^\w\s]")
CHECKED = 2_000  # pictures on which values are compared and the fastest peer is found
MBLEU_PEERS = ("nltk", "sacrebleu", "pycocoevalcap")


class Coco(NamedTuple):
    """The captions of COCO pictures in flat arrays: W words of C captions, V different words."""

    vocabulary: list[str]
    words: np.ndarray  # (W,) index of each word in the vocabulary
    ends: np.ndarray  # (C + 1,) index of the first word of each caption, then W
    content: np.ndarray  # (V,) whether a word of the vocabulary is a content word


@cache
def coco() -> Coco:
    pictures = json.loads((DATA / "coco1000.json").read_text(encoding="utf-8"))
    captions = [caption.split() for picture in pictures for caption in picture["references"][:CAPTIONS]]
    vocabulary = sorted({word for caption in captions for word in caption})
    number = {word: index for index, word in enumerate(vocabulary)}
    content = np.array([len(word) > 3 and word.isalpha() and word.islower() for word in vocabulary])
    words = np.array([number[word] for caption in captions for word in caption])
    return Coco(vocabulary, words, np.cumsum([0, *map(len, captions)]), content)


def draw_shard(shard: int) -> list[list[str]]:
    """Draw a shard: the captions of each of its pictures. `shard` is the seed."""
    source, rng = coco(), np.random.default_rng(shard)
    captions = (
        rng.integers((len(source.ends) - 1) // CAPTIONS, size=SHARD)[:, None] * CAPTIONS + np.arange(CAPTIONS)
    ).ravel()
    lengths = np.diff(source.ends)[captions]
    ends = np.cumsum(lengths)
    words = source.words[np.arange(ends[-1]) + np.repeat(source.ends[captions] - (ends - lengths), lengths)]
    swapped = source.content[words] & (rng.random(len(words)) < 1 / 3)
    words[swapped] = rng.choice(source.words[source.content[source.words]], swapped.sum())
    text = [source.vocabulary[word] for word in words.tolist()]
    flat = [" ".join(text[end - length : end]) for end, length in zip(ends.tolist(), lengths.tolist())]
    return [flat[first : first + CAPTIONS] for first in range(0, len(flat), CAPTIONS)]


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- lexical-1m ----------------------------------------------------------------------------------------------------


def lexical_1m() -> dict[str, Any]:
    """Measure ours in a fresh process, compare the peers' values, then time the fastest peer on all captions."""
    from benchmarks.side_by_side import Peer  # imports torch; late, so that the other cases do not load it

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
    """The interpreter of an environment with the peers' pinned versions, which is made once under runs/peers."""
    folder = Path("runs/peers/diversity")
    python, done, requirements = folder / "bin" / "python", folder / "requirements.txt", [*PINS, *ALONE]
    if not done.exists() or done.read_text().split() != requirements:
        print(f"making the peers' environment {folder}: {', '.join(requirements)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        for packages in (PINS, ["--no-deps", *ALONE]):
            subprocess.run(
                [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True
            )
        done.write_text("\n".join(requirements))
    return python


def lexical_of_ours(shards: Sequence[int], file: Path) -> tuple[float, float, dict[str, Any]]:
    """Measure ours: seconds, peak memory in MB, and values. Write the split captions to the file, one per line."""
    groups = [group for shard in shards for group in draw_shard(shard)]

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
    """Compare the peers' values with ours; return the fastest peer for mBLEU.

    Raises: RuntimeError, if a peer's values differ more than they should
    """
    groups = draw_shard(0)[:CHECKED]
    as_one = CaptionAccumulator()
    as_one.update([[" ".join(word for text in split(groups) for word in text)]])
    ours = sum(as_one.result()[f"distinct_{n}"] for n in (1, 2, 3, 4))
    theirs = peer.ask({"measure": "distinct", "peer": "diversity", "pictures": CHECKED})["values"]
    _equal("distinct, diversity: all captions as one text", round(ours, 3), theirs, tolerance=1e-12)
    theirs = peer.ask({"measure": "vocabulary", "peer": "lexicalrichness", "pictures": None})["values"]
    _equal("vocabulary, lexicalrichness", result["vocabulary"], theirs, tolerance=0)
    ours = within_picture(encode(groups))["mbleu_4"]
    seconds = {}
    for name in MBLEU_PEERS:
        answer = peer.ask({"measure": "mbleu_4", "peer": name, "pictures": CHECKED})
        is_comparable = np.array(answer["comparable"])
        _equal(
            f"mbleu_4, {name}, {is_comparable.sum()} of {len(is_comparable)} pictures",
            ours[is_comparable],
            np.array(answer["values"])[is_comparable],
            tolerance=1e-7,
        )
        seconds[name] = answer["seconds"]
    print(
        f"mbleu_4 of {CHECKED} pictures: {', '.join(f'{name} {value:.2f} s' for name, value in seconds.items())}",
        flush=True,
    )
    return min(seconds, key=seconds.get)


def _equal(description: str, ours: Any, theirs: Any, tolerance: float) -> None:
    difference = float(np.abs(np.subtract(ours, theirs)).max())
    print(f"{description}: up to {difference:.1e} apart", flush=True)
    if not difference <= tolerance:
        raise RuntimeError(f"{description}: {ours} and the peer's {theirs} are {difference} apart")


# --- set-10m -------------------------------------------------------------------------------------------------------


def set_10m() -> dict[str, Any]:
    """Count half of the captions, then all of them."""
    half, full = count_set(100), count_set(200)
    return {
        "ratio": round(full["seconds"] / full["regex_seconds"], 2),
        "twice": round(full["seconds"] / half["seconds"], 2),
        "half_seconds": half["seconds"],
        **full,
    }


def count_set(shards: int) -> dict[str, Any]:
    """Seconds for the measures over this number of shards and for the regular expression alone, and peak memory."""
    from benchmarks.within_image import measure

    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        counted = list(pool.map(count_shards, (range(worker, shards, PROCESSES) for worker in range(PROCESSES))))
        accumulators, regex, ours, peaks = zip(*counted)
        sample = draw_shard(0)
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
    """Count these shards: the counts, the seconds of the regular expression and of ours, and the peak memory in MB."""
    accumulator, regex, ours = CaptionAccumulator(), 0.0, 0.0
    for shard in tqdm(
        shards, f"shards {shards.start}, {shards.start + shards.step}, …", position=shards.start, mininterval=2
    ):
        groups = draw_shard(shard)
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
        within_image_10k as case,  # imports nltk; late, so that the other cases do not load it
    )

    return case()


def vendi_100k() -> dict[str, Any]:
    from benchmarks.vendi import vendi_100k as case

    return case()


def vdtk_1k() -> dict[str, Any]:
    from benchmarks.diversity_vdtk import vdtk_1k as case  # imports torch; late, as above

    return case()


CASES = {
    "lexical-1m": lexical_1m,
    "set-10m": set_10m,
    "vendi-100k": vendi_100k,
    "within-image-10k": within_image_10k,
    "vdtk-1k": vdtk_1k,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, required=True)
    args = parser.parse_args()
    print(json.dumps({"case": args.case, **CASES[args.case]()}))


if __name__ == "__main__":
    main()
