"""Trains a captioner on pictures without captions.

    python self_training.py CURATED PICTURES CAPTIONER OUTPUT [ROUNDS]

CURATED is pictures with captions (a folder, tar shards, scenes:…), PICTURES any input, and CAPTIONER a captioner that
was fine-tuned on CURATED. The method follows MUST (arXiv 2206.02967). In each round, the captioner, whose weights are
averaged over its training, captions the pictures. The captions most similar to their picture are kept, but none of
them too often. Then the captioner is fine-tuned on the curated and the kept captions together. The same command again
continues where it was stopped.
"""

import sys
from collections.abc import Iterator

from finetune.captioner.config import FinetuneConfig
from finetune.captioner.run import run as finetune
from generate.captions.config import GenerateConfig
from generate.captions.run import run as generate
from generate.select.config import SelectConfig
from generate.select.run import run as select
from imagetext.stops import exit_code, signals_as_interrupts

COLUMN = "syn_text_self"
CAPTIONING = {"num_captions": 3, "similarity": True}
CHOICE = {"where": "not flags", "top": 0.5, "max_per_caption": 5}
TRAINING = {"samples_seen": 12_000, "batch_size": 32, "learning_rate": 1e-3, "ema": 0.99, "hold_out": 0}


def self_train(
    curated: str, pictures: str, captioner: str, output: str, *, rounds: int = 3, seed: int = 0, **training: object
) -> Iterator[str]:
    """Yield the folder of the captioner after each round.

    training: fields of `FinetuneConfig` that override TRAINING.
    """
    for number in range(1, rounds + 1):
        captioned, chosen, trained = (f"{output}/{number}/{name}" for name in ("captioned", "chosen", "captioner"))
        steps = (
            (
                generate,
                GenerateConfig(
                    input=[pictures],
                    model=captioner,
                    column=COLUMN,
                    output=captioned,
                    seed=seed + number,
                    **CAPTIONING,
                ),
            ),
            # As Parquet, because caption_column tells fine-tuning which column of a table holds the captions.
            (select, SelectConfig(input=[captioned], column=[COLUMN], output=chosen, format="parquet", **CHOICE)),
            (
                finetune,
                FinetuneConfig(
                    input=[curated, chosen],
                    caption_column=[COLUMN],
                    model=captioner,
                    output=trained,
                    name=f"round_{number}",
                    seed=seed + number,
                    **TRAINING | training,
                ),
            ),
        )
        for command, config in steps:
            if code := command(config):
                raise SystemExit(code)
        captioner = trained
        yield captioner


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6):
        sys.exit(__doc__)
    *inputs, rounds = sys.argv[1:] if len(sys.argv) == 6 else [*sys.argv[1:], "3"]
    try:
        with signals_as_interrupts():
            for folder in self_train(*inputs, rounds=int(rounds)):
                print(f"captioner: {folder}")
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stop:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(exit_code(stop))
