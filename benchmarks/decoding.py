"""Captions/s against the paper's loop: `python -m benchmarks.decoding --case b32-t30`, the last line is one JSON object.

Peer: for each of 5 captions one `generate(generation_type="top_p", top_p=0.9, fixed_output_length=True)` of open_clip 3.3.0, in
its own environment; same random weights, 16 pictures, all cores. Equal work: our end token is suppressed up to the limit. In
`b32-coco` each caption ends at a length drawn from the COCO captions in CAPSMITH_DATA; the peer does its 30 tokens.

floor_share is the floor, divided by our time: the matrix products at the best rate of this machine, or the weights, keys and
values at its memory bandwidth, whichever takes longer, step by step.
"""

import argparse
import json
import os
import random
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.side_by_side import CLIP_PINS, Peer, alternate, bandwidth, peer_python, product_rate
from captioners import coca
from captioners.base import SamplingConfig
from captioners.coca import CoCaCaptioner, load_captioner
from captioners.draw import Drawing

PICTURES, CAPTIONS = 16, 5
CASES = {"b32-t30": ("coca_ViT-B-32", 30), "l14-t30": ("coca_ViT-L-14", 30), "b32-t77": ("coca_ViT-B-32", 77),
         "b32-coco": ("coca_ViT-B-32", 30)}
DATA = Path(os.environ.get("CAPSMITH_DATA", "../shared/data"))


class EndingDrawing(Drawing):
    """Each caption ends with its `lengths[picture, caption]`-th token, and not before."""

    lengths: torch.Tensor

    def _choose(self, flight, logits):
        ends = flight.length + 1 == self.lengths[flight.picture, flight.caption]
        logits[:, self.rules.end_id] = torch.where(ends, 1e4, -1e4)
        return super()._choose(flight, logits)


def coco_lengths(captioner: CoCaCaptioner, limit: int) -> torch.Tensor:
    """Token counts (PICTURES, CAPTIONS), start and end included, of captions drawn from COCO's, at most the limit."""
    pictures = json.loads((DATA / "coco1000.json").read_text(encoding="utf-8"))
    captions = [caption for picture in pictures for caption in picture["references"]]
    drawn = random.Random(0).sample(captions, PICTURES * CAPTIONS)
    return torch.tensor([min(len(captioner.encode_text_ids(caption)), limit) for caption in drawn]).view(PICTURES, CAPTIONS)


def floor_seconds(captioner: CoCaCaptioner, lengths: torch.Tensor, rate: float, bytes_per_s: float) -> float:
    """The least time for captions of these lengths (PICTURES, CAPTIONS), by arithmetic or memory, step by step."""
    model, size = captioner.model, captioner.model.logit_scale.element_size()
    decoder, picture = model.text_decoder, torch.zeros(1, 3, *captioner.preprocess_cfg["size"], dtype=model.logit_scale.dtype)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tokens, width = model._encode_image(picture)[1].shape[1:]
    cross_layers, self_layers = len(decoder.cross_attn), len(decoder.resblocks) + len(model.text.transformer.resblocks)
    keys_values = 2 * tokens * width  # numbers of a picture's keys and values in a cross-attention layer
    seconds = PICTURES * (counter.get_total_flops() + cross_layers * 2 * width * keys_values) / rate
    blocks = nn.ModuleList([model.text.transformer, decoder.resblocks, decoder.cross_attn])
    weights = sum(weight.numel() for weight in blocks.parameters()) + decoder.text_projection.numel() - cross_layers * 2 * width**2
    for fed in range(1, int(lengths.max()) - 1):  # tokens that a row has been fed after this step; the last is not fed
        alive = lengths > fed + 1
        rows = PICTURES if fed == 1 else int(alive.sum())  # one row a picture for the start token
        pictures = int(alive.any(1).sum())
        attention = 4 * width * (self_layers * fed + cross_layers * tokens)
        arithmetic = rows * (2 * weights + attention) / rate
        memory = size * (weights + pictures * cross_layers * keys_values + rows * self_layers * 2 * fed * width) / bytes_per_s
        seconds += max(arithmetic, memory)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of ours; the peer's is fp32, its default")
    parser.add_argument("--repeats", type=int, help="turns; 3, and 1 at 77 tokens")
    parser.add_argument("--no-peer", action="store_true", help="ours alone, to profile")
    args = parser.parse_args()
    architecture, limit = CASES[args.case]
    repeats = args.repeats or (1 if limit == 77 else 3)

    torch.manual_seed(0)
    captioner = load_captioner(architecture, from_scratch=True)
    pictures = torch.randn(PICTURES, 3, *captioner.preprocess_cfg["size"])
    lengths = torch.full((PICTURES, CAPTIONS), limit)
    sampling = SamplingConfig(num_captions=CAPTIONS, top_p=0.9, max_length=limit, min_length=limit)
    if args.case == "b32-coco":
        lengths = EndingDrawing.lengths = coco_lengths(captioner, limit)
        coca.Drawing, sampling = EndingDrawing, sampling.model_copy(update={"min_length": 0})

    def ours() -> None:
        found = list(captioner.caption([(str(i), picture) for i, picture in enumerate(pictures)], sampling))
        if sum(len(one.captions) for one in found) != PICTURES * CAPTIONS:
            raise RuntimeError("captions are missing")

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        captioner.save(folder / "model", "peer")
        torch.save(pictures, folder / "pictures.pt")
        captioner.model.to(DTYPES[args.dtype])
        rate, memory = product_rate(DTYPES[args.dtype]), bandwidth()
        print(f"{architecture}, {PICTURES} x {CAPTIONS} captions of {lengths.float().mean():.1f} tokens, {args.dtype}; this machine: "
              f"{rate / 1e9:.0f} GFLOP/s, {memory / 1e9:.1f} GB/s", flush=True)
        if args.no_peer:
            ours()
            return
        options = {"model": str(folder / "model"), "pictures": str(folder / "pictures.pt"), "tokens": limit, "captions": CAPTIONS}
        with Peer(peer_python("open_clip", CLIP_PINS), "decoding_peer.py", **options) as peer:
            cost, peer_cost = alternate(ours, peer, repeats)
    floor = floor_seconds(captioner, lengths, rate, memory)
    captions = PICTURES * CAPTIONS
    print(json.dumps({
        "case": args.case, "dtype": args.dtype, "ratio": round(peer_cost.seconds / cost.seconds, 2),
        "floor_share": round(floor / cost.seconds, 3),
        "captions_per_s": round(captions / cost.seconds, 2), "peer_captions_per_s": round(captions / peer_cost.seconds, 2),
        # in flight are all of our captions, and one of each picture of the peer's
        "mb_per_caption": round(cost.peak / captions / 1e6, 1), "peer_mb_per_caption": round(peer_cost.peak / PICTURES / 1e6, 1),
    }))


if __name__ == "__main__":
    main()
