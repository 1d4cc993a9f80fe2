"""Caption samples per second in training, compared with open_clip: `python -m benchmarks.finetune --case full-fp32`.

The last line of the output is a JSON object. The peer is open_clip 3.3.0's own training step for CoCa, in its own
environment: its forward pass on captions padded to 76 tokens, its loss, its autocast, AdamW, and gradient clipping. In
each turn both start from the same random weights of coca_ViT-B-32. They take the same pictures (random pixels) and
captions (COCO's, in CAPSMITH_DATA) in the same order, 8 pictures per step (`--batch`), on all cores or the card of
`--device`. Reading pictures is not timed. With five captions per picture, the peer takes five steps with one caption
each. `loss_gap` is the largest relative difference between the two losses over the steps, if both take the same steps.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch

from benchmarks.side_by_side import CLIP_PINS, Peer, alternate, peer_python
from captioners.coca.forward import encode_images
from captioners.load import load_captioner
from finetune.batching import Batch, collate
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.forward import training_forward
from finetune.optimizer import learning_rate
from finetune.trainer import Trainer

BATCH, STEPS, CONTEXT = 8, 5, 76
CASES = {
    "full-fp32": ("fp32", 1, False),
    "full-bf16": ("bf16", 1, False),
    "five-fp32": ("fp32", 5, False),
    "five-bf16": ("bf16", 5, False),
    "cached-bf16": ("bf16", 1, True),
}  # precision, captions per picture, whether the image tower is frozen and its outputs cached
DATA = Path(os.environ.get("CAPSMITH_DATA", "../shared/data"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="device of both sides: cpu, cuda, …")
    parser.add_argument("--architecture", default="coca_ViT-B-32")
    parser.add_argument("--batch", type=int, default=BATCH, help="pictures per step")
    args = parser.parse_args()
    dtype, captions, cached = CASES[args.case]
    steps = STEPS if captions == 1 else 2

    torch.manual_seed(0)
    captioner = load_captioner(args.architecture, from_scratch=True, device=args.device)
    pixels = torch.randn(steps * args.batch, 3, *captioner.preprocess_cfg["size"])
    annotated = json.loads((DATA / "coco1000.json").read_text(encoding="utf-8"))[: len(pixels)]
    ids = [
        [captioner.encode_text_ids(caption)[:CONTEXT] for caption in picture["references"][:captions]]
        for picture in annotated
    ]
    batches = [
        collate([(pixels[i], ids[i], i, str(i)) for i in range(first, first + args.batch)], captioner.pad_id)
        for first in range(0, len(pixels), args.batch)
    ]

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        captioner.save(folder / "model", "peer")
        config = FinetuneConfig(
            input=["-"],
            model="-",
            output=folder,
            batch_size=args.batch,
            captions_per_image=captions,
            dtype=dtype,
            samples_seen=steps * args.batch * captions,
            learning_rate=1e-4,
            device=args.device,
            freeze_image=cached,
        )
        initial = {name: weight.clone() for name, weight in captioner.model.state_dict().items()}
        images = [
            encode_images(captioner.model, batch.images.to(args.device)) if cached else batch.images
            for batch in batches
        ]
        losses: list[float] = []

        trainer = Trainer(config, training_forward(captioner, config), batches)

        def ours() -> None:
            captioner.model.load_state_dict(initial)
            for state in trainer.optimizer.state.values():
                for value in state.values():
                    value.zero_()  # in place, because newly allocated memory is slow at first
            trainer.schedule.last_epoch = -1
            trainer.schedule.step()
            with trainer.forward.products():
                losses[:] = [
                    trainer._step(Batch(image, *batch[1:]))["loss"]
                    for image, batch in zip(images, batches, strict=True)
                ]

        tokens = torch.zeros(len(ids), captions, CONTEXT, dtype=torch.long)
        for rows, captions_of_picture in zip(tokens, ids, strict=True):
            for row, caption in zip(rows, captions_of_picture, strict=True):
                row[: len(caption)] = torch.tensor(caption)
        torch.save({"pixels": pixels, "tokens": tokens}, folder / "data.pt")
        peer_steps = steps * captions
        options = {
            "model": str(folder / "model"),
            "data": str(folder / "data.pt"),
            "batch": args.batch,
            "lock_image": cached,
            "precision": "amp_bf16" if dtype == "bf16" else "fp32",
            "weight_decay": config.weight_decay,
            "device": args.device,
            "rates": [1e-4 * learning_rate(step, peer_steps, config.warmup) for step in range(peer_steps)],
        }
        with Peer(peer_python("open_clip", CLIP_PINS), "finetune_peer.py", **options) as peer:
            cost, peer_cost = alternate(ours, peer, args.repeats, device=args.device)
            theirs = peer.ask("losses")["losses"]
    samples = steps * args.batch * captions
    gap = max(abs(a - b) / b for a, b in zip(losses, theirs, strict=True)) if captions == 1 else None
    print(
        json.dumps(
            {
                "case": args.case,
                "device": args.device,
                "ratio": round(peer_cost.seconds / cost.seconds, 2),
                "samples_per_s": round(samples / cost.seconds, 2),
                "peer_samples_per_s": round(samples / peer_cost.seconds, 2),
                "peak_mb": round(cost.peak / 1e6),
                "peer_peak_mb": round(peer_cost.peak / 1e6),
                "loss_gap": gap and round(gap, 4),
            }
        )
    )


if __name__ == "__main__":
    main()
