"""Captions per second of a vision-language model, compared with transformers' `generate`: `python -m benchmarks.vlm`.

The last line of the output is a JSON object. Both sides have a model with the shape of SmolVLM-256M-Instruct and
random weights, the same 16 pictures (`--pictures`), which are one tile of 64 tokens each, and the same prompt. They
draw 5 captions of 30 tokens each with top-p 0.9, on all cores; to do equal work, the end token is suppressed.

The peer is the installed transformers, in a process of its own: `generate(do_sample=True, num_return_sequences=5)`
with as many pictures in a batch as is fastest for it (`--peer-batch`). It encodes a picture once for its captions.
Preprocessing of pictures is not timed.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.side_by_side import Peer, alternate
from benchmarks.smolvlm import SIDE, write_model
from captioners.base import Request, SamplingConfig
from captioners.vlm.load import load_vlm

CAPTIONS, TOKENS = 5, 30
CASES = {"smolvlm-fp32": "fp32", "smolvlm-bf16": "bf16"}  # the dtype of both sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="smolvlm-fp32")
    parser.add_argument("--pictures", type=int, default=16, help="pictures per turn")
    parser.add_argument("--peer-batch", type=int, default=4, help="pictures that the peer captions at a time")
    parser.add_argument("--repeats", type=int, default=3, help="number of turns")
    args = parser.parse_args()
    dtype = CASES[args.case]

    with tempfile.TemporaryDirectory() as folder:
        model, inputs = Path(folder) / "model", Path(folder) / "inputs.pt"
        write_model(model)
        captioner = load_vlm(model, dtype=dtype)
        pictures = torch.rand(args.pictures, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
        requests = [Request(str(index), picture) for index, picture in enumerate(pictures)]
        # the start token stands for the prompt, and the end token is not chosen
        sampling = SamplingConfig(num_captions=CAPTIONS, top_p=0.9, max_length=TOKENS + 2, min_length=TOKENS + 2)

        def ours() -> None:
            captioned = list(captioner.caption(requests, sampling))
            if sum(len(result.captions) for result in captioned) != args.pictures * CAPTIONS:
                raise RuntimeError("captions are missing")

        torch.save({"pixels": pictures, "prompt": torch.tensor(captioner.prompt.ids)}, inputs)
        print(
            f"{captioner.description}\n{args.pictures} x {CAPTIONS} captions of {TOKENS} tokens, {dtype}", flush=True
        )
        options = {
            "model": str(model),
            "inputs": str(inputs),
            "captions": CAPTIONS,
            "tokens": TOKENS,
            "batch": args.peer_batch,
            "dtype": dtype,
        }
        with Peer(Path(sys.executable), "vlm_peer.py", **options) as peer:
            cost, peer_cost = alternate(ours, peer, args.repeats)
    count = args.pictures * CAPTIONS
    print(
        json.dumps(
            {
                "case": args.case,
                "pictures": args.pictures,
                "ratio": round(peer_cost.seconds / cost.seconds, 2),
                "captions_per_s": round(count / cost.seconds, 2),
                "peer_captions_per_s": round(count / peer_cost.seconds, 2),
                "mb": round(cost.peak / 1e6),
                "peer_mb": round(peer_cost.peak / 1e6),
            }
        )
    )


if __name__ == "__main__":
    main()
