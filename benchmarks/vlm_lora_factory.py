"""LoRA training of a LLaVA compared with LLaMA-Factory, by processor time: `python -m benchmarks.vlm_lora_factory`.

The last line of the output is a JSON object. Both sides have the model of `llava.py` (random weights), and the same
adapters of rank 16 on all linear layers of the language model, without dropout. They take the same pictures (random
pixels) and captions (COCO's, in CAPSMITH_DATA) in the same order, in LLaMA-Factory's template `llava`, with the same
optimizer and learning rates. No side recomputes activations (LLaMA-Factory would by default). The loss is that of the
captions' tokens.

The peer is LLaMA-Factory 0.9.5 in its own environment, which shares our packages except those that it wants older
(transformers 5.6, peft 0.18). It runs as its command does. Its steps are timed without the batches that it makes
between them, and preprocessing of pictures is timed on neither side. With five captions for each picture, the peer
takes a row for each caption. `loss_gap` is the largest relative difference between the two losses over the steps.
`peak_mb` is the memory of the whole process in its first training, libraries and model included.

Seconds are processor seconds of all threads, so that other work on the machine changes them little; OMP_NUM_THREADS=1
is the steadiest.
"""

import json
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from benchmarks.llava import SIDE, write_model
from benchmarks.side_by_side import Peer, alternate, memory, peer_python, reset_peak
from benchmarks.vlm_lora import RATE, OurTraining, make_batches, make_config, pictures_with_captions, read_flags
from captioners.vlm.load import load_vlm
from finetune.optimizer import learning_rate

FACTORY = "llamafactory==0.9.5"
CASES = {
    "factory-fp32": ("fp32", 1),
    "factory-bf16": ("bf16", 1),
    "factory-five-fp32": ("fp32", 5),
    "factory-five-bf16": ("bf16", 5),
}


def main() -> None:
    args = read_flags(__doc__, CASES)
    pixels, captions = pictures_with_captions(args, SIDE)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_model(folder / "model", [caption for texts in captions for caption in texts])
        captioner = load_vlm(folder / "model")
        config = make_config(folder, args)
        training = OurTraining(captioner, config, make_batches(captioner, pixels, captions, size=args.batch))
        torch.save(training.adapters, folder / "adapters.pt")
        write_rows(folder / "rows", pixels, captions, captioner.instruction, first=args.batch)
        options = {
            "settings": {
                "stage": "sft",
                "do_train": True,
                "model_name_or_path": str(folder / "model"),
                "template": "llava",
                "dataset": "captions",
                "dataset_dir": str(folder / "rows"),
                "finetuning_type": "lora",
                "lora_target": "all",
                "lora_rank": config.lora_rank,
                "lora_alpha": 2 * config.lora_rank,
                "lora_dropout": 0.0,
                "per_device_train_batch_size": args.batch * args.each,
                "gradient_accumulation_steps": 1,
                "max_steps": args.steps + 1,  # the first warms up
                "weight_decay": config.weight_decay,
                "max_grad_norm": config.clip_grad_norm,
                "adam_beta2": 0.98,
                "adam_epsilon": 1e-6,
                "disable_gradient_checkpointing": True,
                "disable_shuffling": True,
                "bf16": args.dtype == "bf16",
                "use_cpu": True,
                "logging_steps": 1,
                "save_strategy": "no",
                "report_to": "none",
                "overwrite_cache": True,
                "disable_tqdm": True,
                "log_level": "error",
            },
            "folder": str(folder),
            "adapters": str(folder / "adapters.pt"),
            "rates": [RATE * learning_rate(step, args.steps, config.warmup) for step in range(args.steps)],
        }
        with Peer(peer_python("llamafactory", [FACTORY], shared=True), "vlm_lora_factory_peer.py", **options) as peer:
            reset_peak()
            training.run()
            peak = memory("VmHWM")
            cost, peer_cost = alternate(training.run, peer, args.repeats, clock=time.process_time)
            theirs = peer.ask("losses")["losses"]
    gap = max(abs(a - b) / b for a, b in zip(training.losses, theirs, strict=True))
    samples = args.steps * args.batch * args.each
    print(
        json.dumps(
            {
                "case": args.case,
                "ratio": round(peer_cost.seconds / cost.seconds, 2),
                "samples_per_processor_s": round(samples / cost.seconds, 3),
                "peer_samples_per_processor_s": round(samples / peer_cost.seconds, 3),
                "peak_mb": round(peak / 1e6),
                "peer_peak_mb": round(peer_cost.peak / 1e6),
                "loss_gap": float(f"{gap:.2g}"),
            }
        )
    )


def write_rows(folder: Path, pixels, captions: list[list[str]], instruction: str, first: int) -> None:
    """Write pictures (N, H, W, 3) with their captions as a dataset of LLaMA-Factory; its rows begin with those of the
    first pictures once more.
    """
    folder.mkdir()
    rows = []
    for index, (picture, texts) in enumerate(zip(pixels, captions, strict=True)):
        file = folder / f"{index}.png"
        Image.fromarray(picture).save(file)
        rows.append(
            [{"instruction": f"<image>{instruction}", "output": text, "images": [str(file)]} for text in texts]
        )
    flat = [row for of_picture in [*rows[:first], *rows] for row in of_picture]
    (folder / "rows.json").write_text(json.dumps(flat), encoding="utf-8")
    columns = {"prompt": "instruction", "response": "output", "images": "images"}
    (folder / "dataset_info.json").write_text(
        json.dumps({"captions": {"file_name": "rows.json", "columns": columns}}), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
