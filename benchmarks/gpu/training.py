"""Training steps of the large CoCa in bf16."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.bench import COCO_MEAN, Bench, coco_lengths
from benchmarks.side_by_side import seconds_of
from captioners.coca.captioner import CoCaCaptioner
from finetune.batching import Batch, collate
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.forward import training_forward
from finetune.trainer import Trainer


def training(bench: Bench) -> Iterator[dict]:
    """Samples per second, and the share of the ceiling that a step reaches; with equal and varied lengths."""
    scale = bench.scale
    captioner = bench.build(scale.large, "fp32")
    with tempfile.TemporaryDirectory() as folder:
        for size in scale.batches:
            try:
                yield from steps(bench, captioner, size, folder=Path(folder))
            except torch.OutOfMemoryError:
                yield {"case": f"{scale.large}, bf16, {size} pictures", "note": "out of memory"}


def steps(bench: Bench, captioner: CoCaCaptioner, size: int, *, folder: Path) -> Iterator[dict]:
    """The figures for one batch size."""
    count = bench.scale.steps
    bench.forget()
    config = FinetuneConfig(
        input=["-"],
        model="-",
        output=folder,
        batch_size=size,
        dtype="bf16",
        samples_seen=100 * size * count,
        device=bench.device,
    )
    trainer = Trainer(config, training_forward(captioner, config), [])
    images = [picture for _, picture, _ in bench.pictures(captioner, size)]

    def train(batches: list[Batch]) -> None:
        with trainer.forward.products():
            for batch in batches:
                trainer._step(batch)

    for varied in (False, True):
        tokens = iter(coco_lengths(size * count) if varied else [round(COCO_MEAN)] * size * count)
        batches = [
            collate(
                [
                    (image, [[captioner.start_id, *range(3, 1 + next(tokens)), captioner.end_id]], number, str(number))
                    for number, image in enumerate(images)
                ],
                captioner.pad_id,
            )
            for _ in range(count)
        ]
        if bench.card:
            batches = [batch._replace(images=batch.images.pin_memory()) for batch in batches]
        with FlopCounterMode(display=False) as counter:  # this step also warms up
            train(batches[:1])
        train(batches[:1])
        seconds = seconds_of(lambda: train(batches), bench.device)
        flops = counter.get_total_flops()
        yield {
            "case": f"{captioner.name}, bf16, {size} pictures, lengths {'drawn' if varied else 'alike'}",
            "samples_per_s": size * count / seconds,
            "gflop_per_sample": flops / size / 1e9,
            "share_of_ceiling": flops * count / seconds / bench.rate("bf16"),
            "gigabytes": bench.gigabytes(),
            "ms_per_step": 1e3 * seconds / count,
        }
