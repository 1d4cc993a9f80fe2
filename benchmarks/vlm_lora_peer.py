"""The peer of `vlm_lora.py`, in its own environment: TRL's `SFTTrainer` with adapters.

This file imports nothing of ours. Its argument is a JSON object: `model`, a folder; `data`, a file of `pixels`
(N, H, W, 3) and the first weights of the `adapters`; `output`, a folder; `prompt`, a text; `captions`, of which
`each` belong to a picture; `end`, the token after a caption; `rows` of a batch; `bf16`; `targets` of the adapters;
`rates`, the learning rate of each step; `weight_decay`; `clip`, the gradient norm.
"""

import json
import sys
import time

import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback, TrainerCallback
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling


def memory(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


class Measure(TrainerCallback):
    """Measures the steps, from the first to the end of the last, and keeps their losses."""

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 0:
            with open("/proc/self/clear_refs", "w") as file:  # resets the peak
                file.write("5")
            self.before, self.start, self.losses = memory("VmRSS"), time.perf_counter(), []

    def on_step_end(self, args, state, control, **_):
        self.cost = {"seconds": time.perf_counter() - self.start, "peak": memory("VmHWM") - self.before}

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.losses.append(logs["loss"])


def make_batches(processor, options: dict, pixels: torch.Tensor) -> list[dict]:
    collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    examples = [
        {
            "images": [Image.fromarray(pixels[index // options["each"]].numpy())],
            "prompt": options["prompt"],
            "completion": f"{caption} {options['end']}",
        }
        for index, caption in enumerate(options["captions"])
    ]
    return [
        dict(collator(examples[first : first + options["rows"]])) for first in range(0, len(examples), options["rows"])
    ]


def train(model, processor, batches: list[dict], options: dict) -> Measure:
    """Take a step for each batch, from the same adapters."""
    rates, measure, waiting = options["rates"], Measure(), iter(batches)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=1.0, betas=(0.9, 0.98), eps=1e-6, weight_decay=options["weight_decay"], fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[min(step, len(rates) - 1)])
    config = trl.SFTConfig(
        options["output"],
        use_cpu=True,
        bf16=options["bf16"],
        gradient_checkpointing=False,
        per_device_train_batch_size=1,  # an item of the set is a whole batch
        max_steps=len(batches),
        max_grad_norm=options["clip"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_length=None,
    )
    trainer = trl.SFTTrainer(
        model,
        config,
        data_collator=lambda _: dict(next(waiting)),
        train_dataset=Dataset.from_dict(
            {"images": [[]] * len(batches), "prompt": [""] * len(batches), "completion": [""] * len(batches)}
        ),
        processing_class=processor,
        optimizers=(optimizer, schedule),
        callbacks=[measure],
    )
    trainer.remove_callback(PrinterCallback)  # which prints on standard output
    trainer.train()
    return measure


def main() -> None:
    options = json.loads(sys.argv[1])
    data = torch.load(options["data"], weights_only=True)
    processor = AutoProcessor.from_pretrained(options["model"])
    model = AutoModelForImageTextToText.from_pretrained(options["model"], dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=options["targets"]))
    batches = make_batches(processor, options, data["pixels"])
    print(json.dumps({"trl": trl.__version__, "transformers": transformers.__version__}), flush=True)
    measure = None
    for line in sys.stdin:
        if json.loads(line) == "losses":
            print(json.dumps({"losses": measure.losses}), flush=True)
            continue
        train(model, processor, batches[:1], options)  # warms up
        missing = model.load_state_dict(data["adapters"], strict=False).unexpected_keys
        if missing:
            raise RuntimeError(f"adapters differ: {missing}")
        measure = train(model, processor, batches, options)
        print(json.dumps(measure.cost), flush=True)


if __name__ == "__main__":
    main()
