"""Makes the built-in captioner coca_tiny: `python -m finetune.captioner.pretrain_tiny`, or `make pretrain-tiny`.

It takes 70 to 90 minutes on 2 cores, with a fixed seed. The vocabulary is trained on the words of the built-in picture
set, unless the folder has one already. Then coca_tiny is pretrained on the set's noisy alt texts only, as the paper's
captioner is on web data. The result is captioners/models/coca_tiny, with weights in float16.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from finetune.captioner.config import FinetuneConfig
from finetune.captioner.run import run
from imagetext.lock import FolderLock
from imagetext.outputs import whole_file, write_file
from imagetext.scenes.draw import SceneSpec, draw_scene
from imagetext.scenes.words import alt_text, long_caption, short_captions

FOLDER = Path(__file__).parents[2] / "captioners" / "models" / "coca_tiny"
VOCABULARY, WIDTH, CONTEXT = 1024, 128, 76
PAD, START, END = "<pad>", "<start>", "<end>"  # ids 0, 1, 2
MODEL_CONFIG = {
    "embed_dim": WIDTH,
    # There is no attentional pooling: with 32 pooled queries, shapes were not learnt in as many steps.
    "vision_cfg": {
        "image_size": 56,
        "layers": 4,
        "width": WIDTH,
        "head_width": 32,
        "patch_size": 8,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "width": WIDTH,
        "heads": 4,
        "layers": 2,
        "embed_cls": True,
        "output_tokens": True,
        "hf_tokenizer_name": "coca_tiny",
        "tokenizer_kwargs": {"clean": "lower"},
    },
    "multimodal_cfg": {
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "width": WIDTH,
        "heads": 4,
        "layers": 3,
        "attn_pooler_heads": 4,
    },
    "custom_text": True,
}
PREPROCESS = {
    "size": [56, 56],
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


def write_tokenizer(folder: Path, scenes: int = 10_000) -> None:
    """Train a byte-level BPE on the captions of `scenes` training scenes with one to four objects, and write it."""
    spec = SceneSpec("train", level=4)
    texts = []
    for index in range(scenes):
        scene, rng = draw_scene(spec, index), random.Random(f"vocabulary/{index}")
        texts += [*short_captions(scene, rng), long_caption(scene, rng), alt_text(scene, rng)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        (text.lower() for text in texts),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[PAD, START, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 1), (END, 2)]
    )
    write_file(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # both transformers 4 and 5 have this class
        "bos_token": START,
        "eos_token": END,
        "pad_token": PAD,
        "add_prefix_space": True,  # transformers 4 would replace the tokenizer's setting by its own default
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }
    write_file(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")


def write_config(folder: Path, positions: str = "learnable") -> None:
    """Write open_clip_config.json, which training from scratch needs. positions: of a picture, as open_clip has it."""
    model_config = MODEL_CONFIG | {"vision_cfg": MODEL_CONFIG["vision_cfg"] | {"pos_embed_type": positions}}
    config = {"model_cfg": model_config, "preprocess_cfg": PREPROCESS, "capsmith": {"name": "coca_tiny"}}
    write_file(folder / "open_clip_config.json", json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=36_000, help="number of training steps of 32 pictures each")
    parser.add_argument("--pictures", type=int, default=96_000, help="number of pictures to train on")
    parser.add_argument(
        "--work", type=Path, help="folder for the training run, so that it can be resumed after a stop"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder for the captioner")
    args = parser.parse_args()
    with FolderLock(args.folder):
        work = args.work or Path(tempfile.mkdtemp())
        pretrain(args.folder, work, pictures=args.pictures, steps=args.steps)


def pretrain(folder: Path, work: Path, *, pictures: int, steps: int) -> None:
    """Train the captioner in the folder `work`, and write it into `folder`."""
    if not (folder / "tokenizer.json").exists():
        write_tokenizer(folder)
    write_config(folder, "sin_cos_2d")  # only at the start: we train them, and open_clip would keep them fixed
    inputs = [
        f"scenes:train,n={pictures * thirds // 3},level={level},captions=alt" for level, thirds in ((1, 1), (2, 2))
    ]
    run(
        FinetuneConfig(
            input=inputs,
            model=str(folder),
            output=work,
            from_scratch=True,
            samples_seen=32 * steps,
            batch_size=32,
            learning_rate=5e-4,
            weight_decay=0.05,
            warmup=0.03,
        )
    )
    weights = {name: weight.half() for name, weight in load_file(work / "open_clip_model.safetensors").items()}
    with whole_file(folder / "open_clip_model.safetensors") as temporary:
        save_file(weights, temporary)
    write_config(folder)


if __name__ == "__main__":
    main()
