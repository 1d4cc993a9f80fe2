"""The peer of `decoding.py`, `parity.py` and `gpu`, in its own environment: open_clip's `generate`, as the paper calls
it.

This file imports nothing of ours. Its argument is a JSON object with the fields: `model`, a folder in open_clip's
layout, or `architecture`, an open_clip architecture that gets random weights; `pictures`, a file of pixels (N, 3, H,
W) or the number of random pictures; `device` (default cpu) and `dtype` (default fp32); and for the loop, `tokens` and
`captions`.

It answers each line that it is sent: null with the cost of the loop; {"pictures": N, "dtype": D} with the cost for the
first N pictures in that dtype; {"greedy": N} with greedy captions of at most N tokens.
"""

import json
import sys
import time

import open_clip
import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def memory(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def load(options: dict, device: str) -> torch.nn.Module:
    if "model" in options:
        return open_clip.create_model(f"local-dir:{options['model']}", require_pretrained=True).eval()
    with torch.device(device):
        model = open_clip.create_model(options["architecture"], device=device).eval()
        torch.nn.init.normal_(
            model.text_decoder.text_projection, std=model.text_decoder.width**-0.5
        )  # open_clip leaves it unset
    return model


class Cost:
    """Measure the seconds of a `with` block, and the bytes by which it raised the peak memory of the process or the
    card.
    """

    def __init__(self, device: str):
        self.card = device.startswith("cuda")

    def __enter__(self):
        if self.card:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            with open("/proc/self/clear_refs", "w") as file:  # resets the peak
                file.write("5")
        self.before, self.start = torch.cuda.memory_allocated() if self.card else memory("VmRSS"), time.perf_counter()
        return self

    def __exit__(self, *_):
        if self.card:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.start
        peak = torch.cuda.max_memory_allocated() if self.card else memory("VmHWM")
        self.found = {"seconds": seconds, "peak": peak - self.before}


def loop(model: torch.nn.Module, pictures: torch.Tensor, options: dict) -> None:
    for _ in range(options["captions"]):
        model.generate(
            pictures, generation_type="top_p", top_p=0.9, seq_len=options["tokens"], fixed_output_length=True
        )


def main() -> None:
    options = json.loads(sys.argv[1])
    device, dtype = options.get("device", "cpu"), options.get("dtype", "fp32")
    model = load(options, device).to(device, DTYPES[dtype])
    if isinstance(options["pictures"], int):
        size = model.visual.image_size
        pictures = torch.randn(options["pictures"], 3, *(size if isinstance(size, (list, tuple)) else (size, size)))
    else:
        pictures = torch.load(options["pictures"], weights_only=True)
    print(json.dumps({"open_clip": open_clip.__version__, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        question = json.loads(line) or {}
        precision = DTYPES[question.get("dtype", dtype)]
        model.to(precision)
        chosen = pictures[: question.get("pictures")].to(device, precision)
        if "greedy" in question:
            tokens = model.generate(chosen, generation_type="top_k", top_k=1, seq_len=question["greedy"])
            print(json.dumps({"tokens": tokens.tolist()}), flush=True)
            continue
        model.generate(chosen, generation_type="top_p", top_p=0.9, seq_len=6, fixed_output_length=True)  # warms up
        with Cost(device) as cost:
            loop(model, chosen, options)
        print(json.dumps(cost.found), flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
