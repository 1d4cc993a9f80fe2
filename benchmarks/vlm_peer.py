"""The peer of `vlm.py`: transformers' `generate` with several captions for each picture of a batch.

This file imports nothing of ours. Its argument is a JSON object: `model`, a folder; `inputs`, a file with `pixels`
(N, 3, H, W) and the token ids of the `prompt`; `captions` of each picture and their `tokens`; `batch`, the pictures
captioned at a time; `dtype`. It answers each line that it is sent with the cost of captioning all pictures; a line
with a number changes `batch` first.
"""

import json
import sys

import torch
import transformers
from decoding_peer import DTYPES, Cost
from transformers import AutoModelForImageTextToText


@torch.no_grad()
def caption(model: torch.nn.Module, pixels: torch.Tensor, prompt: torch.Tensor, options: dict) -> None:
    for pictures in pixels.split(options["batch"]):
        ids = prompt.expand(len(pictures), -1)
        captioned = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pictures[:, None].to(model.dtype),  # (N, tiles, 3, H, W)
            do_sample=True,
            top_p=0.9,
            top_k=0,
            num_return_sequences=options["captions"],
            min_new_tokens=options["tokens"],
            max_new_tokens=options["tokens"],
        )
        if captioned.shape != (len(pictures) * options["captions"], len(prompt) + options["tokens"]):
            raise RuntimeError(f"unequal work: {captioned.shape}")


def main() -> None:
    options = json.loads(sys.argv[1])
    inputs = torch.load(options["inputs"], weights_only=True)
    model = AutoModelForImageTextToText.from_pretrained(options["model"], dtype=DTYPES[options["dtype"]]).eval()
    print(json.dumps({"transformers": transformers.__version__}), flush=True)
    for line in sys.stdin:
        options["batch"] = json.loads(line) or options["batch"]
        caption(model, inputs["pixels"][: options["batch"]], inputs["prompt"], options | {"tokens": 4})  # warms up
        with Cost("cpu") as cost:
            caption(model, inputs["pixels"], inputs["prompt"], options)
        print(json.dumps(cost.found), flush=True)


if __name__ == "__main__":
    main()
