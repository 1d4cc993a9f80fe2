"""The gate's rules for degenerate captions compared with data-juicer's filters: `python -m benchmarks.gate`.

The last line of the output is a JSON object. Both sides read the same JSONL file of captions and write the rows that
they keep. The captions are people's, and bad ones made from them by fixed rules (`bad_captions.py`; CAPSMITH_DATA).

The peer is data-juicer 1.6.1 in its own environment, which shares our packages. `recipe` is what its own recipe for
LLaVA's captions (llava-pretrain-refine) does with texts: two mappers that mend texts, and filters with narrow limits.
`defaults` has its filters of form with their default limits. Its filters of flagged words, language and perplexity,
which the recipe has as well, need files that are not in the package, and are left out. So is its limit of ten words,
the default of words_num_filter, which would refuse most of COCO's captions.

`refused` has the share of each kind of captions that a side refuses, in %: of the first three kinds, which people
wrote, none should be; of all others, all. The recipe also mends captions in wrong letters. Ours is
`degenerate_reasons`, by which the gate of `capsmith generate` refuses captions, and `capsmith diversity` counts them.

`ratio` is the peer's time for `defaults` divided by ours, in processor seconds of one process each. The peer's time
begins after its imports.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bad_captions import bad_captions, captions_of_people
from benchmarks.side_by_side import Peer, alternate, peer_python
from diversity.words.degenerate import degenerate_reasons

JUICER = "py-data-juicer==1.6.1"
RECIPES: dict[str, list[dict[str, Any]]] = {  # the last one is timed
    "recipe": [
        {"fix_unicode_mapper": {}},
        {"punctuation_normalization_mapper": {}},
        {"alphanumeric_filter": {"min_ratio": 0.60}},
        {"character_repetition_filter": {"rep_len": 10, "max_ratio": 0.09373663}},
        {"special_characters_filter": {"min_ratio": 0.16534802, "max_ratio": 0.42023757}},
        {"word_repetition_filter": {"lang": "en", "rep_len": 10, "max_ratio": 0.03085751}},
    ],
    "defaults": [
        {"alphanumeric_filter": {}},
        {"character_repetition_filter": {}},
        {"special_characters_filter": {}},
        {"text_length_filter": {}},
        {"word_repetition_filter": {"lang": "en"}},
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["captions"], default="captions")
    parser.add_argument("--repeats", type=int, default=3, help="number of turns")
    args = parser.parse_args()
    kinds = {**captions_of_people(), **bad_captions()}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        rows, left = folder / "rows.jsonl", folder / "left.jsonl"
        rows.write_text(
            "".join(
                json.dumps({"id": f"{kind} {index}", "text": text}) + "\n"
                for kind, texts in kinds.items()
                for index, text in enumerate(texts)
            ),
            encoding="utf-8",
        )
        keep_good(rows, left)
        refused = {"ours": shares_refused(kinds, texts_of(left))}
        with Peer(peer_python("data_juicer", [JUICER], shared=True), "gate_peer.py", folder=str(folder)) as peer:
            kept = {
                name: texts_of(Path(peer.ask({"rows": str(rows), "process": process})["left"]))
                for name, process in RECIPES.items()
            }
            cost, peer_cost = alternate(lambda: keep_good(rows, left), peer, args.repeats, clock=time.process_time)
    refused |= {name: shares_refused(kinds, texts) for name, texts in kept.items()}
    count = sum(map(len, kinds.values()))
    print(
        json.dumps(
            {
                "case": args.case,
                "ratio": round(peer_cost.seconds / cost.seconds, 2),
                "captions": count,
                "captions_per_processor_s": round(count / cost.seconds),
                "peer_captions_per_processor_s": round(count / peer_cost.seconds),
                "refused": refused,
                "mojibake_mended_by_recipe": share_mended(kept["recipe"], len(kinds["mojibake"])),
            }
        )
    )


def keep_good(rows: Path, left: Path) -> None:
    """Write the rows whose captions are not degenerate."""
    with rows.open(encoding="utf-8") as source, left.open("w", encoding="utf-8") as target:
        for line in source:
            if not degenerate_reasons(json.loads(line)["text"]):
                target.write(line)


def texts_of(file: Path) -> dict[str, str]:
    """The text of each row, by its id."""
    with file.open(encoding="utf-8") as lines:
        return {row["id"]: row["text"] for row in map(json.loads, lines)}


def shares_refused(kinds: dict[str, list[str]], kept: dict[str, str]) -> dict[str, float]:
    """The share of each kind that is not kept, in %."""
    return {
        kind: round(100 * sum(f"{kind} {index}" not in kept for index in range(len(texts))) / len(texts), 1)
        for kind, texts in kinds.items()
    }


def share_mended(kept: dict[str, str], count: int) -> float:
    """The share of the captions in wrong letters that are kept with the same text as those in the right ones, in %."""
    is_mended = [kept.get(f"mojibake {index}", "") == kept.get(f"accented {index}") for index in range(count)]
    return round(100 * sum(is_mended) / count, 1)


if __name__ == "__main__":
    main()
