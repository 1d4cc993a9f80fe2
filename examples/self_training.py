"""Teaches a captioner on pictures without captions: `python self_training.py CURATED PICTURES CAPTIONER OUTPUT [ROUNDS]`.

After MUST (arXiv 2206.02967), for captions: in each round the captioner, whose weights are an average over its training, captions the
pictures; the captions that are most like their picture stay, none of them too often; and it learns from curated and chosen captions
together. CURATED is pictures with captions (a folder, tar shards, scenes:…), PICTURES any input, CAPTIONER one that was
fine-tuned on CURATED. The same command again goes on where it was stopped.
"""

import sys
from collections.abc import Iterator

from finetune.captioner.config import FinetuneConfig
from finetune.captioner.run import run as finetune
from generate.captions.config import GenerateConfig
from generate.captions.run import run as generate
from generate.select.config import SelectConfig
from generate.select.run import run as select

COLUMN = "syn_text_self"
CAPTIONING = {"num_captions": 3, "similarity": True}
CHOICE = {"where": "not flags", "top": 0.5, "max_per_caption": 5}
TRAINING = {"samples_seen": 12_000, "batch_size": 32, "learning_rate": 1e-3, "ema": 0.99, "hold_out": 0}


def self_train(
    curated: str, pictures: str, captioner: str, output: str, *, rounds: int = 3, seed: int = 0, **training: object
) -> Iterator[str]:
    """The folder of the captioner after each round; training: fields of `FinetuneConfig` in place of TRAINING's."""
    for number in range(1, rounds + 1):
        captioned, chosen, taught = (f"{output}/{number}/{name}" for name in ("captioned", "chosen", "captioner"))
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
            # In tables, of which fine-tuning is told in which column the captions stand.
            (select, SelectConfig(input=[captioned], column=[COLUMN], output=chosen, format="parquet", **CHOICE)),
            (
                finetune,
                FinetuneConfig(
                    input=[curated, chosen],
                    caption_column=[COLUMN],
                    model=captioner,
                    output=taught,
                    name=f"round_{number}",
                    seed=seed + number,
                    **TRAINING | training,
                ),
            ),
        )
        for command, config in steps:
            if code := command(config):
                raise SystemExit(code)
        captioner = taught
        yield captioner


if __name__ == "__main__":
    *inputs, rounds = sys.argv[1:] if len(sys.argv) == 6 else [*sys.argv[1:], "3"]
    for folder in self_train(*inputs, rounds=int(rounds)):
        print(f"captioner: {folder}")
