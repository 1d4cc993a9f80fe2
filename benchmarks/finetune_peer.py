"""The peer of `finetune.py`, in its own environment: open_clip's training step for CoCa.

This file imports nothing of ours. Its argument is a JSON object: `model`, a folder in open_clip's layout; `data`, a
file of pixels (N, 3, H, W) and tokens (N, K, 76); `batch`; `precision`; `lock_image`; `rates`, the learning rate of
each step; `weight_decay`; `device`.
"""

import json
import sys
import time

import open_clip
import torch


def memory(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def make_optimizer(model, weight_decay: float) -> torch.optim.Optimizer:
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    undecayed = [weight for name, weight in named if weight.ndim < 2 or "bn" in name or "ln" in name or "bias" in name]
    decayed = [weight for _, weight in named if not any(weight is other for other in undecayed)]
    groups = [{"params": undecayed, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)


def train(model, optimizer, options: dict, data: dict) -> list[float]:
    model.train()
    loss_of = open_clip.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=0)
    losses, rates = [], iter(options["rates"])
    for start in range(0, len(data["pixels"]), options["batch"]):
        part = slice(start, start + options["batch"])
        for caption in range(data["tokens"].shape[1]):
            for group, rate in zip(optimizer.param_groups, [next(rates)] * 2):
                group["lr"] = rate
            optimizer.zero_grad()
            with torch.autocast(
                options["device"].partition(":")[0], torch.bfloat16, enabled=options["precision"] == "amp_bf16"
            ):
                output = model(data["pixels"][part], data["tokens"][part, caption])
                losses_by_name = loss_of(**output, output_dict=True)
                total = sum(losses_by_name.values())
            total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, norm_type=2.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, 4.6052)
            losses.append(total.item())
    return losses


def main() -> None:
    options = json.loads(sys.argv[1])
    model = open_clip.create_model(f"local-dir:{options['model']}", require_pretrained=True)
    if options["lock_image"]:
        model.visual.lock()  # what --lock-image does for CLIP; it fails for CoCa, which has no lock_image_tower
    card = options["device"].startswith("cuda")
    model.to(options["device"])
    data = {
        name: value.to(options["device"]) for name, value in torch.load(options["data"], weights_only=True).items()
    }
    optimizer = make_optimizer(model, options["weight_decay"])
    initial = {name: weight.clone() for name, weight in model.state_dict().items()}
    first = {name: value[: options["batch"]] for name, value in data.items()}
    print(json.dumps({"open_clip": open_clip.__version__, "torch": torch.__version__}), flush=True)
    losses: list[float] = []
    for line in sys.stdin:
        if json.loads(line) == "losses":
            print(json.dumps({"losses": losses}), flush=True)
            continue
        train(model, optimizer, options, first)  # warms up
        if card:
            torch.cuda.reset_peak_memory_stats()
        else:
            with open("/proc/self/clear_refs", "w") as file:  # resets the peak
                file.write("5")
        before, start = torch.cuda.memory_allocated() if card else memory("VmRSS"), time.perf_counter()
        model.load_state_dict(initial)
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()  # in place, because newly allocated memory is slow at first
        losses = train(model, optimizer, options, data)  # reads each loss, which waits for the card
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() if card else memory("VmHWM")
        print(json.dumps({"seconds": seconds, "peak": peak - before}), flush=True)


if __name__ == "__main__":
    main()
