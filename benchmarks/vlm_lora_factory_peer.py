"""The peer of `vlm_lora_factory.py`, in its own environment: LLaMA-Factory's `run_exp`, which `llamafactory-cli train`
calls.

This file imports nothing of ours. Its argument is a JSON object: `settings` of the command; `folder`, for its output;
`adapters`, a file of their first weights; `rates`, the learning rate of each step. The first step warms up: after it,
the adapters and the optimizer begin anew. The peak memory is that of the whole process in its first training.
"""

import json
import sys
import tempfile
import time

import torch
import transformers
from llamafactory.extras.env import VERSION
from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback


def memory(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


class Measure(TrainerCallback):
    """Measures the steps after the first, and keeps their losses; batches are made between the steps."""

    def __init__(self, rates: list[float], adapters: dict[str, torch.Tensor]):
        self.rates, self.adapters, self.losses, self.seconds = rates, adapters, [], 0.0

    def on_train_begin(self, args, state, control, **_):
        with open("/proc/self/clear_refs", "w") as file:  # resets the peak
            file.write("5")

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **_):
        if state.global_step == 1:
            self._begin_anew(model, optimizer)
        for group in optimizer.param_groups:
            group["lr"] = self.rates[max(0, state.global_step - 1)]
        self.start = time.process_time()

    def on_step_end(self, args, state, control, **_):
        if state.global_step > 1:
            self.seconds += time.process_time() - self.start

    def on_train_end(self, args, state, control, **_):
        self.peak = memory("VmHWM")

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs and state.global_step > 1:
            self.losses.append(logs["loss"])

    def _begin_anew(self, model, optimizer):
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        if trained != set(self.adapters):
            raise RuntimeError(f"adapters differ: {sorted(trained ^ set(self.adapters))[:4]}")
        model.load_state_dict(self.adapters, strict=False)
        optimizer.state.clear()


def main() -> None:
    options = json.loads(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr  # LLaMA-Factory prints on standard output
    adapters = torch.load(options["adapters"], weights_only=True)
    print(json.dumps({"llamafactory": VERSION, "transformers": transformers.__version__}), file=answers, flush=True)
    measure, peak = None, None
    for line in sys.stdin:
        if json.loads(line) == "losses":
            print(json.dumps({"losses": measure.losses}), file=answers, flush=True)
            continue
        measure = Measure(options["rates"], adapters)
        settings = {**options["settings"], "output_dir": tempfile.mkdtemp(dir=options["folder"])}
        run_exp(settings, callbacks=[measure])
        peak = measure.peak if peak is None else peak
        print(json.dumps({"seconds": measure.seconds, "peak": peak}), file=answers, flush=True)


if __name__ == "__main__":
    main()
