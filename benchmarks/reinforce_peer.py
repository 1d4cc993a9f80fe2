"""The peer of `reinforce.py`, in its own environment: ml-mobileclip-dr's embedding stage, from one shard on disk to
another.

This file imports nothing of ours. Its argument is a JSON object: `teachers`, files with the states of models of the
same `architecture`; `shard`, a tar; `output`, a folder; `views` per picture; `batch`, records at a time; `device`
(default cpu).
"""

import json
import sys

import gen
import open_clip
import torch
from generate_peer import answer, run_locally, writer_options

AUGMENTATION = {
    "random_resized_crop": {"interpolation": "bicubic", "size": 224},
    "rand_augment": {"enable": True, "p": 1.0},
    "to_rgb": {"enable": True},
    "to_tensor": {"enable": True},
    "normalize": {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)},
}


def main() -> None:
    options = json.loads(sys.argv[1])
    run_locally(options.get("device", "cpu"))
    names = ",".join([options["architecture"]] * len(options["teachers"]))
    stage = gen.EmbeddingModel(
        names,
        ",".join(options["teachers"]),
        batch_size=options["batch"],
        num_samples=options["views"],
        tag_suffix="",
        syn_text_key_regex="^syn_text",
        aug_config=AUGMENTATION,
        shard_writer_kwargs=writer_options(options["output"]),
    )
    pictures = torch.randn(options["batch"], 3, 224, 224, device=stage.device)

    def warm_up() -> None:
        with torch.inference_mode():
            for model, tokenizer in zip(stage.model, stage.tokenizer):
                model(pictures, tokenizer(["a photograph"] * options["batch"]).to(stage.device))

    answer(warm_up, lambda: stage({"path": options["shard"]}))


if __name__ == "__main__":
    main()
