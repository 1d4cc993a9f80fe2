"""Captions per second, compared with the paper's loop: `python -m benchmarks.decoding --case b32-t30`.

The last line of the output is a JSON object. The peer calls open_clip 3.3.0 in its own environment, for each of 5
captions once: `generate(generation_type="top_p", top_p=0.9, fixed_output_length=True)`. Both sides have the same
random weights, 16 pictures (`--pictures`), and all cores or the card of `--device`. To do equal work, our end token is
suppressed up to the limit. In `b32-coco` each of our captions ends at a length that is drawn from the COCO captions in
CAPSMITH_DATA; the peer does its 30 tokens.

`floor_share` is the least possible time, divided by our time. The least possible time is computed step by step, as the
longer of two times: that of the matrix products at the best rate of this machine, and that of reading the weights,
keys and values at its memory bandwidth.
"""

import argparse
import json
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.floor import floor_seconds
from benchmarks.side_by_side import CLIP_PINS, Peer, alternate, bandwidth, is_card, peer_python, product_rate
from captioners.base import Request, SamplingConfig
from captioners.coca.captioner import CoCaCaptioner
from captioners.decoding import batch as draw
from captioners.decoding.rows import Rules
from captioners.load import load_captioner
from captioners.weights import DTYPES

PICTURES, CAPTIONS = 16, 5
CASES = {
    "b32-t30": ("coca_ViT-B-32", 30),
    "l14-t30": ("coca_ViT-L-14", 30),
    "b32-t77": ("coca_ViT-B-32", 77),
    "b32-coco": ("coca_ViT-B-32", 30),
}
DATA = Path(os.environ.get("CAPSMITH_DATA", "../shared/data"))


def ending_at(lengths: torch.Tensor) -> Callable:
    """Make a `draw.choose_next` with which each caption has exactly `lengths[picture, caption]` tokens."""
    choose_next = draw.choose_next

    def choose(flight: draw.Flight, logits: torch.Tensor, rules: Rules) -> tuple[torch.Tensor, torch.Tensor]:
        ends = flight.length + 1 == lengths[flight.picture % len(lengths), flight.caption]
        logits[:, rules.end_id] = torch.where(ends, 1e4, -1e4).to(logits.dtype)
        return choose_next(flight, logits, rules)

    return choose


def coco_lengths(captioner: CoCaCaptioner, limit: int, count: int = PICTURES) -> torch.Tensor:
    """Numbers of tokens (count, CAPTIONS), with start and end, of captions drawn from COCO's; at most the limit."""
    pictures = json.loads((DATA / "coco1000.json").read_text(encoding="utf-8"))
    captions = [caption for picture in pictures for caption in picture["references"]]
    sample = random.Random(0).sample(captions, count * CAPTIONS)
    return torch.tensor([min(len(captioner.encode_text_ids(caption)), limit) for caption in sample]).view(
        count, CAPTIONS
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="fp32",
        help="our dtype; the peer uses the same on a card, and fp32 on a CPU",
    )
    parser.add_argument("--device", default="cpu", help="device of both sides: cpu, cuda, …")
    parser.add_argument(
        "--products",
        choices=("torch", "onednn"),
        help="our library of float32 products on a CPU (default: the faster)",
    )
    parser.add_argument("--pictures", type=int, default=PICTURES, help="pictures per turn, captioned at the same time")
    parser.add_argument("--repeats", type=int, help="number of turns (default: 3, or 1 at 77 tokens)")
    parser.add_argument("--no-peer", action="store_true", help="run only our side, for profiling")
    args = parser.parse_args()
    architecture, limit = CASES[args.case]
    repeats = args.repeats or (1 if limit == 77 else 3)

    torch.manual_seed(0)
    captioner = load_captioner(architecture, from_scratch=True, device=args.device, products=args.products)
    captioner.batch_size = args.pictures
    pictures = torch.randn(args.pictures, 3, *captioner.preprocess_cfg["size"])
    lengths = torch.full((args.pictures, CAPTIONS), limit)
    sampling = SamplingConfig(num_captions=CAPTIONS, top_p=0.9, max_length=limit, min_length=limit)
    if args.case == "b32-coco":
        lengths = coco_lengths(captioner, limit, args.pictures)
        draw.choose_next, sampling = ending_at(lengths.to(args.device)), sampling.model_copy(update={"min_length": 0})

    def ours() -> None:
        captioned = list(captioner.caption([Request(str(i), picture) for i, picture in enumerate(pictures)], sampling))
        if sum(len(result.captions) for result in captioned) != args.pictures * CAPTIONS:
            raise RuntimeError("captions are missing")

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        captioner.save(folder / "model", "peer")
        torch.save(pictures, folder / "pictures.pt")
        captioner.model.to(DTYPES[args.dtype])
        rate, memory = product_rate(DTYPES[args.dtype], args.device), bandwidth(args.device)
        print(
            f"{architecture}, {args.pictures} x {CAPTIONS} captions of {lengths.float().mean():.1f} tokens, "
            f"{args.dtype}; this machine: {rate / 1e9:.0f} GFLOP/s, {memory / 1e9:.1f} GB/s",
            flush=True,
        )
        if args.no_peer:
            ours()
            return
        options = {
            "model": str(folder / "model"),
            "pictures": str(folder / "pictures.pt"),
            "tokens": limit,
            "captions": CAPTIONS,
            "device": args.device,
            "dtype": args.dtype if is_card(args.device) else "fp32",
        }
        with Peer(peer_python("open_clip", CLIP_PINS), "decoding_peer.py", **options) as peer:
            cost, peer_cost = alternate(ours, peer, repeats, device=args.device)
    floor = floor_seconds(captioner, lengths, rate, bytes_per_s=memory)
    captions = args.pictures * CAPTIONS
    print(
        json.dumps(
            {
                "case": args.case,
                "dtype": args.dtype,
                "device": args.device,
                "products": captioner.products,
                "pictures": args.pictures,
                "ratio": round(peer_cost.seconds / cost.seconds, 2),
                "floor_share": round(floor / cost.seconds, 3),
                "captions_per_s": round(captions / cost.seconds, 2),
                "peer_captions_per_s": round(captions / peer_cost.seconds, 2),
                # we decode all captions of the pictures at the same time, the peer one caption of each picture
                "mb_per_caption": round(cost.peak / captions / 1e6, 1),
                "peer_mb_per_caption": round(peer_cost.peak / args.pictures / 1e6, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
