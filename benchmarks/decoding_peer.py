"""The peer of `decoding.py` and `parity.py`, in its own environment: open_clip's `generate` as the paper's loop calls it.

Imports nothing of ours. Its argument is a JSON object: `model`, a folder in open_clip's layout; `pictures`, a file of
pixels (N, 3, H, W); and for `loop`, `tokens` and `captions`.
"""

import json
import sys
import time

import open_clip
import torch


def memory(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def main() -> None:
    options = json.loads(sys.argv[1])
    model = open_clip.create_model(f"local-dir:{options['model']}", require_pretrained=True).eval()
    pictures = torch.load(options["pictures"], weights_only=True)
    print(json.dumps({"open_clip": open_clip.__version__, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if question is None:
            model.generate(pictures, generation_type="top_p", top_p=0.9, seq_len=6, fixed_output_length=True)  # to warm up
            with open("/proc/self/clear_refs", "w") as file:  # the peak is forgotten
                file.write("5")
            before, start = memory("VmRSS"), time.perf_counter()
            for _ in range(options["captions"]):
                model.generate(pictures, generation_type="top_p", top_p=0.9, seq_len=options["tokens"], fixed_output_length=True)
            seconds = time.perf_counter() - start
            print(json.dumps({"seconds": seconds, "peak": memory("VmHWM") - before}), flush=True)
        else:
            found = model.generate(pictures, generation_type="top_k", top_k=1, seq_len=question["greedy"])
            print(json.dumps({"tokens": found.tolist()}), flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
