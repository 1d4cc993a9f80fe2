"""The case `vdtk-1k` of `benchmarks.diversity`: captions of people and noise, by `capsmith diversity` and by vdtk.

1,000 pictures of COCO, with two human captions as references, and two columns: `people` has three more human captions
of each picture, `noise` three captions of the same lengths, whose words are drawn from all words of COCO's captions.

The peer is vdtk 0.3.0 in its own environment, which shares our packages. Its command line does not start without
tensorflow, which it does not require, so the functions behind its commands are called. Its commands for diversity want
spaCy's model en_core_web_lg, which is not on PyPI. spaCy's own tokenizer for English takes its place, so that parts of
speech are missing and are not timed. vdtk measures one column at a time: vocab-stats, ngram-stats and leave-one-out,
with 2 iterations instead of its 750.

- `ratio`: the peer's processor seconds for both columns divided by ours (no embedder) for both, with all of our
  measures and the verdict.
- Values are compared first, for the old captioner's captions of the same pictures: for the same words, BLEU-4, CIDEr-D
  and ROUGE-L are equal. The vocabularies of `people` are nearly equal, because spaCy splits some words.
- `peer`: the numbers in vdtk's tables, of people's captions and of noise. `first_sentences` are those of
  our report.
"""

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.diversity import DATA
from benchmarks.side_by_side import Peer, alternate, peer_python
from diversity.config import DiversityConfig
from diversity.measures.references import bleu_4, cider_d, rouge_l
from diversity.run import run
from diversity.words.tokens import words

VDTK = "vdtk==0.3.0"
REFERENCES, CAPTIONS = 2, 3  # of each picture
COLUMNS = ("people", "noise")
ITERATIONS = 2
SAME = 1e-9


def vdtk_1k() -> dict[str, Any]:
    """Compare values, costs, and what each says of noise; RuntimeError if values differ."""
    pictures = json.loads((DATA / "coco1000.json").read_text(encoding="utf-8"))
    columns = drawn_columns(pictures)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        rows = folder / "captions.jsonl"
        rows.write_text(
            "".join(
                json.dumps(
                    {"key": str(index), "captions": picture["references"][:REFERENCES]}
                    | {name: columns[name][index] for name in COLUMNS}
                )
                + "\n"
                for index, picture in enumerate(pictures)
            ),
            encoding="utf-8",
        )
        for name in COLUMNS:
            (folder / f"{name}.json").write_text(json.dumps([{"references": texts} for texts in columns[name]]))
        turns = iter(range(100))

        def ours() -> None:
            run(
                DiversityConfig(
                    input=[str(rows)],
                    column=list(COLUMNS),
                    embedder="none",
                    output=folder / f"report-{next(turns)}",
                )
            )

        options = {"folder": str(folder), "columns": COLUMNS, "iterations": ITERATIONS}
        with Peer(peer_python("vdtk", [VDTK], shared=True), "diversity_vdtk_peer.py", **options) as peer:
            apart = compare_scores(peer, pictures)
            cost, peer_cost = alternate(ours, peer, 1, clock=time.process_time)
            tables = peer.ask("tables")
        report = json.loads((folder / "report-0" / "report.json").read_text(encoding="utf-8"))
        first_sentences = (folder / "report-0" / "report.md").read_text(encoding="utf-8").splitlines()[:2]
    people = tables["people"]
    return {
        "ratio": round(peer_cost.seconds / cost.seconds, 2),
        "processor_seconds": round(cost.seconds, 1),
        "peer_processor_seconds": round(peer_cost.seconds, 1),
        "peak_mb": round(cost.peak / 1e6),
        "peer_peak_mb": round(peer_cost.peak / 1e6),
        "apart": apart,
        "vocabulary": report["columns"]["people"]["vocabulary"],
        "peer_vocabulary": people["Unique Tokens"],
        "peer": {name: [tables[column][name] for column in COLUMNS] for name in people},
        "first_sentences": first_sentences,
    }


def drawn_columns(pictures: list[dict]) -> dict[str, list[list[str]]]:
    """The captions of each column and picture."""
    draw = random.Random(0)
    all_words = [word for picture in pictures for caption in picture["references"] for word in words(caption)]
    people = [
        [" ".join(words(caption)) for caption in picture["references"][REFERENCES : REFERENCES + CAPTIONS]]
        for picture in pictures
    ]
    vocabulary = sorted(set(all_words))
    noise = [[" ".join(draw.choices(vocabulary, k=len(text.split()))) for text in texts] for texts in people]
    return {"people": people, "noise": noise}


def compare_scores(peer: Peer, pictures: list[dict]) -> dict[str, float]:
    """How far the old captioner's scores are apart from vdtk's on the words that vdtk's tokenizer makes."""
    answer = peer.ask({"pictures": [{"candidates": p["candidates"], "references": p["references"]} for p in pictures]})
    captions = [text.split() for text in answer["candidates"]]
    references = [[text.split() for text in texts] for texts in answer["references"]]
    ours = {
        "bleu_4": bleu_4(captions, references),
        "cider_d": float(cider_d(captions, references).mean()),
        "rouge_l": float(rouge_l(captions, references).mean()),
    }
    apart = {name: abs(value - answer[name]) for name, value in ours.items()}
    if not max(apart.values()) <= SAME:
        raise RuntimeError(f"ours are {ours}, vdtk's { {name: answer[name] for name in ours} }")
    return {name: float(f"{difference:.1e}") for name, difference in apart.items()}
