"""What fine-tuning the built-in captioner achieves, for three seeds: `python -m benchmarks.quickstart --output
runs/bench`.

For each seed this runs `capsmith quickstart` with 500 held-out pictures of one or two objects. For the pretrained and
the fine-tuned captioner it prints the precision of the facts that captions state, and the recall of the scenes' facts,
by kind. The last line of the output is a JSON object.
"""

import argparse
import json
from pathlib import Path

from quickstart import AFTER, BEFORE, QuickstartConfig, run

KINDS = ("colour", "shape", "count", "relation", "size", "texture", "background")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    scores = {"before": [], "after": []}
    for seed in args.seeds:
        folder = args.output / f"seed{seed}"
        if run(QuickstartConfig(output=folder, held_out_pictures=500, seed=seed)):
            raise SystemExit(f"the quickstart failed: {folder}")
        columns = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))["columns"]
        scores["before"].append(columns[BEFORE])
        scores["after"].append(columns[AFTER])
    lines = {
        f"{name} seed {seed}": summary(column)
        for name, columns in scores.items()
        for seed, column in zip(args.seeds, columns)
    }
    print()
    for name, line in lines.items():
        print(name, ", ".join(f"{key} {value:.3f}" for key, value in line.items()))
    print(json.dumps({"case": "quickstart", **lines}))


def summary(column: dict) -> dict[str, float]:
    facts = column["facts"]
    kinds = {kind: facts["kinds"][kind] for kind in KINDS if kind in facts["kinds"]}
    precision = {
        f"{kind} true": scores["precision"] for kind, scores in kinds.items() if scores["precision"] is not None
    }
    recall = {f"{kind} found": scores["recall"] for kind, scores in kinds.items() if scores["recall"] is not None}
    return {
        "facts true": facts["precision"],
        **precision,
        "facts found": facts["recall"],
        **recall,
        "facts a caption": facts["stated_per_caption"],
        "degenerate": column["degenerate"],
        "mBLEU-4": column["mbleu_4"],
    }


if __name__ == "__main__":
    main()
