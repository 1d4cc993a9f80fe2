"""Captions per second in LoRA training of a vision-language model, compared with TRL: `python -m benchmarks.vlm_lora`.

The last line of the output is a JSON object. Both sides have a model with the shape of SmolVLM-256M-Instruct and
random weights, and the same adapters of rank 16 on all linear layers of the language model, without dropout. They
take the same pictures (random pixels, one tile of 64 tokens each) and captions (COCO's, in CAPSMITH_DATA) in the same
order, with the same optimizer and learning rates, on all cores. No side recomputes activations (TRL would by default).
The loss is that of the captions' tokens.

The peer is `SFTTrainer.train` of TRL 1.16.0 in its own environment, which shares our packages. Its own collator makes
the batches before the time starts; preprocessing of pictures is timed on neither side. With five captions for each
picture, the peer takes a row for each caption. `loss_gap` is the largest relative difference between the two losses
over the steps.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.side_by_side import Peer, alternate, peer_python
from benchmarks.smolvlm import SIDE, write_model
from captioners.vlm.captioner import VLMCaptioner
from captioners.vlm.load import load_vlm
from finetune.batching import Batch, collate
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.forward import training_forward
from finetune.optimizer import learning_rate
from finetune.trainer import Trainer

TRL = "trl==1.16.0"
CASES = {
    "lora-fp32": ("fp32", 1),
    "lora-bf16": ("bf16", 1),
    "lora-five-fp32": ("fp32", 5),
    "lora-five-bf16": ("bf16", 5),
}
RATE = 1e-3
DATA = Path(os.environ.get("CAPSMITH_DATA", "../shared/data"))


def read_flags(description: str, cases: Mapping[str, tuple[str, int]]) -> argparse.Namespace:
    """The flags, with `dtype` and `each` (captions of a picture) of the case; the first case is the default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=cases, default=next(iter(cases)))
    parser.add_argument("--batch", type=int, default=4, help="pictures per step")
    parser.add_argument("--steps", type=int, default=3, help="steps per turn")
    parser.add_argument("--repeats", type=int, default=3, help="number of turns")
    args = parser.parse_args()
    args.dtype, args.each = cases[args.case]
    return args


def pictures_with_captions(args: argparse.Namespace, side: int) -> tuple[np.ndarray, list[list[str]]]:
    """Random pixels (pictures of a turn, side, side, 3), and captions of COCO for each picture."""
    count = args.batch * args.steps
    annotated = json.loads((DATA / "coco1000.json").read_text(encoding="utf-8"))[:count]
    captions = [[" ".join(text.split()) for text in picture["references"][: args.each]] for picture in annotated]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=generator).numpy(), captions


def main() -> None:
    args = read_flags(__doc__, CASES)
    pixels, captions = pictures_with_captions(args, SIDE)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_model(folder / "model", [caption for texts in captions for caption in texts])
        captioner = load_vlm(folder / "model")
        targets = captioner.language_layers()
        config = make_config(folder, args)
        training = OurTraining(captioner, config, make_batches(captioner, pixels, captions, size=args.batch))
        torch.save({"pixels": torch.from_numpy(pixels), "adapters": training.adapters}, folder / "data.pt")
        options = {
            "model": str(folder / "model"),
            "data": str(folder / "data.pt"),
            "output": str(folder / "trl"),
            "prompt": captioner.family.render_template(True)[0].replace("\1", captioner.instruction),
            "captions": [captioner.prompt.lead + text for texts in captions for text in texts],
            "rows": args.batch * args.each,
            "each": args.each,
            "end": captioner.tokenizer.convert_ids_to_tokens(captioner.end_id),
            "bf16": args.dtype == "bf16",
            "targets": targets,
            "rates": [RATE * learning_rate(step, args.steps, config.warmup) for step in range(args.steps)],
            "weight_decay": config.weight_decay,
            "clip": config.clip_grad_norm,
        }
        with Peer(peer_python("trl", [TRL], shared=True), "vlm_lora_peer.py", **options) as peer:
            cost, peer_cost = alternate(training.run, peer, args.repeats)
            theirs = peer.ask("losses")["losses"]
    gap = max(abs(a - b) / b for a, b in zip(training.losses, theirs, strict=True))
    samples = args.steps * args.batch * args.each
    print(
        json.dumps(
            {
                "case": args.case,
                "ratio": round(peer_cost.seconds / cost.seconds, 2),
                "samples_per_s": round(samples / cost.seconds, 3),
                "peer_samples_per_s": round(samples / peer_cost.seconds, 3),
                "peak_mb": round(cost.peak / 1e6),
                "peer_peak_mb": round(peer_cost.peak / 1e6),
                "loss_gap": float(f"{gap:.2g}"),
            }
        )
    )


def make_config(folder: Path, args: argparse.Namespace) -> FinetuneConfig:
    return FinetuneConfig(
        input=["-"],
        model="-",
        output=folder,
        batch_size=args.batch,
        captions_per_image=args.each,
        dtype=args.dtype,
        samples_seen=args.steps * args.batch * args.each,
        learning_rate=RATE,
        device="cpu",
        lora_rank=16,
        lora_dropout=0.0,
        caption_weight=1.0,
    )


class OurTraining:
    """Our training of adapters, which begins with the same weights each time."""

    def __init__(self, captioner: VLMCaptioner, config: FinetuneConfig, batches: list[Batch]):
        self.captioner, self.batches = captioner, batches
        self.trainer = Trainer(config, training_forward(captioner, config), batches)
        self.adapters = {name: weight.detach().clone() for name, weight in self._trained()}
        self.losses: list[float] = []

    def run(self) -> None:
        """Take a step for each batch, and keep the losses."""
        trainer = self.trainer
        with torch.no_grad():
            for name, weight in self._trained():
                weight.copy_(self.adapters[name])
        trainer.optimizer.state.clear()
        trainer.schedule.last_epoch = -1
        trainer.schedule.step()
        with trainer.forward.products():
            self.losses = [trainer._step(batch)["loss"] for batch in self.batches]

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, weight) for name, weight in self.captioner.adapter.named_parameters() if weight.requires_grad]


def make_batches(captioner: VLMCaptioner, pixels, captions: list[list[str]], size: int) -> list[Batch]:
    """Our batches of pictures (N, H, W, 3) with the captions of each."""
    items = [
        (
            captioner.preprocess(Image.fromarray(picture)),
            [captioner.encode_text_ids(text) for text in texts],
            i,
            str(i),
        )
        for i, (picture, texts) in enumerate(zip(pixels, captions, strict=True))
    ]
    return [collate(items[first : first + size], captioner.pad_id) for first in range(0, len(items), size)]


if __name__ == "__main__":
    main()
