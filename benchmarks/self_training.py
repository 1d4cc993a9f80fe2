"""Does self-training help? It is compared with longer fine-tuning on the curated set alone, by facts true and found.

Both arms begin with the same captioner, coca_tiny fine-tuned on a few curated pictures. In each round both see the
same number of captions, with the same settings. The other pictures are new drawings by the same rules; they are
captioned without their captions and facts.

    python -m benchmarks.self_training OUTPUT [SEEDS [ROUNDS]]
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from self_training import CAPTIONING, TRAINING, self_train

from diversity.measures.fidelity import FactCounts
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.run import run as finetune
from generate.captions.config import GenerateConfig
from generate.captions.run import run as generate
from imagetext.sources import read_records

CURATED, PICTURES, HELD_OUT = 200, 300, 100
FIRST, ROUND = 3_000, 1_500  # captions seen in the first fine-tuning and in each round
COLUMN = "syn_text_asked"
CAPTIONING |= {"num_workers": 0}
TRAINING |= {"samples_seen": ROUND}


def unlabelled(folder: Path, seed: int) -> str:
    """Write pictures without captions or facts; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in read_records(f"scenes:train,n={PICTURES},level=2,seed={seed}"):
        (folder / f"{record.key}.jpg").write_bytes(record.image)
    return str(folder)


def facts(captioner: str, output: str, seed: int) -> dict[str, float]:
    """Precision and recall of the facts in the captioner's captions of held-out pictures."""
    config = GenerateConfig(
        input=[f"scenes:test,n={HELD_OUT},level=2"],
        model=captioner,
        column=COLUMN,
        output=output,
        redraws=0,
        on_degenerate="keep",
        num_workers=0,
        seed=seed,
    )
    if code := generate(config):
        raise SystemExit(code)
    counts = FactCounts()
    for record in read_records(output):
        counts.update(record.columns[COLUMN], record.meta["scene"])
    return {name: counts.result()[name] for name in ("precision", "recall")}


def longer(curated: str, captioner: str, output: str, *, rounds: int, seed: int) -> Iterator[str]:
    """Like `self_train`, but fine-tunes on the curated captions alone."""
    for number in range(1, rounds + 1):
        trained = f"{output}/{number}/captioner"
        train(curated, captioner, trained, name=f"round_{number}", seed=seed + number, samples=ROUND)
        captioner = trained
        yield captioner


def train(curated: str, model: str, output: str, *, name: str, seed: int, samples: int) -> None:
    settings = TRAINING | {"samples_seen": samples}
    config = FinetuneConfig(input=[curated], model=model, output=output, name=name, seed=seed, **settings)
    if code := finetune(config):
        raise SystemExit(code)


def table(rows: list[dict]) -> str:
    """A Markdown table with a row for each arm and round: means over seeds, and the range."""
    lines = ["| round | fine-tuned by | facts true | facts found |", "|---:|---|---:|---:|"]
    for number, arm in dict.fromkeys((row["round"], row["arm"]) for row in sorted(rows, key=lambda row: row["round"])):
        arm_rows = [row for row in rows if (row["round"], row["arm"]) == (number, arm)]
        cells = []
        for name in ("precision", "recall"):
            values = [100 * row[name] for row in arm_rows]
            cells.append(f"{sum(values) / len(values):.1f} % ({min(values):.1f} to {max(values):.1f})")
        lines.append(f"| {number} | {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(output: str, seeds: str = "3", rounds: str = "2") -> None:
    rows, start = [], time.process_time()
    for seed in range(int(seeds)):
        folder, first = Path(output) / str(seed), f"{output}/{seed}/first"
        curated = f"scenes:train,n={CURATED},level=2,seed={1000 + seed}"
        pictures = unlabelled(folder / "pictures", 2000 + seed)
        train(curated, "coca_tiny", first, name="first", seed=seed, samples=FIRST)
        arms = {
            "self-training": self_train(curated, pictures, first, f"{folder}/self", rounds=int(rounds), seed=seed),
            "curated alone": longer(curated, first, f"{folder}/longer", rounds=int(rounds), seed=seed),
        }
        first_scores = facts(first, f"{folder}/facts/first", seed)
        rows.append({"seed": seed, "arm": "both", "round": 0, **first_scores})
        for arm, captioners in arms.items():
            for number, captioner in enumerate(captioners, 1):
                scores = facts(captioner, f"{folder}/facts/{arm.replace(' ', '-')}-{number}", seed)
                rows.append({"seed": seed, "arm": arm, "round": number, **scores})
                Path(output, "rows.json").write_text(json.dumps(rows, indent=1))
    print(table(rows))
    print(f"{time.process_time() - start:.0f} s of processor time")


if __name__ == "__main__":
    main(*sys.argv[1:])
