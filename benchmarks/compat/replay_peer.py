"""The peer of `replay.py`, in its own environment: the reference's transforms replay views of pictures.

This file imports nothing of ours. Its argument is a JSON object: `module`, the module of the transforms; `config`, a
`config.json` of `capsmith reinforce`; and `views`, a JSON file with pairs of a picture's file and its `paug.json`. It
prints the versions of the packages. For each picture it prints the SHA-256 of the decoded pixels, and lists with the
SHA-256 of each view's pixels before and after normalising.
"""

import hashlib
import importlib
import json
import sys

import PIL
import torch
import torchvision
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor


def sha(pixels):
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()


def main() -> None:
    options = json.loads(sys.argv[1])
    module = importlib.import_module(options["module"])
    with open(options["config"], encoding="utf-8") as file:
        config = json.load(file)["reinforce"]["image_augmentation"]
    transforms = module.compose_from_config(config)
    before = module.compose_from_config(
        {name: value for name, value in config.items() if name not in ("to_tensor", "normalize")}
    )
    with open(options["views"], encoding="utf-8") as file:
        views = json.load(file)
    pictures = []
    for path, stored in views:
        with Image.open(path) as opened:
            image = opened.convert("RGBA").convert("RGB")  # webdataset's "pilrgba", then what the trainer does
        parameters = [transforms.decompress(view) for view in stored["param_aug"]]
        plain = [sha(pil_to_tensor(before.reapply(image, view)[0])) for view in parameters]
        pictures.append(
            [sha(pil_to_tensor(image)), plain, [sha(transforms.reapply(image, view)[0]) for view in parameters]]
        )
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "pillow": PIL.__version__,
                "pixels": pictures,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
