"""What tests do in several processes and in one: `ranks.py FILE JSON`, started by a launcher.

JSON: `gradients`, a list of settings, of each of which FILE gets a step's gradients; `runs`, a list of (settings, steps or none).
"""

import json
import os
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.distributed.tensor import DTensor

from captioners.coca import load_captioner
from finetune.batching import BatchOrder, CaptionedPictures, batches
from finetune.config import FinetuneConfig
from finetune.forward import CoCaForward
from finetune.run import run
from finetune.trainer import CaptionTrainer
from imagetext.sources import read_samples


def gradients_of_a_step(scaled: bool = False, **settings) -> dict:
    """Each weight's gradient, and the losses, of a step on the same pictures and weights, whatever the settings.

    scaled: tokens' logits are CoCa's times its logit scale, whose gradient then is of each process's own captions, too.
    """
    config = FinetuneConfig(**{"input": ["scenes:train,n=10,size=32"], "model": "coca_tiny", "output": "unused", "device": "cpu",
                               "batch_size": 8, "samples_seen": 8, "clip_grad_norm": 1e9} | settings)
    captioner = load_captioner(config.model)
    pictures = CaptionedPictures(read_samples(config.input), captioner, captions_per_image=config.captions_per_image, quiet=True)
    pictures.samples[3] = pictures.samples[2]
    torch.manual_seed(0)  # of adapters
    trainer = CaptionTrainer(config, captioner, pictures)
    found, step = {}, trainer.optimizer.step

    def noting() -> None:
        gradients = {name: weight.grad for name, weight in trainer.weights.weights.items() if weight.grad is not None}
        found.update({name: (of.full_tensor() if isinstance(of, DTensor) else of).clone() for name, of in gradients.items()})
        step()

    trainer.optimizer.step = noting
    order = BatchOrder(pictures, 8, 1, 0, rank=trainer.accelerator.process_index, world=trainer.accelerator.num_processes)
    batch, forward = next(iter(batches(order, 0))), CoCaForward.forward

    def scaling(self, images, tokens):
        output = forward(self, images, tokens)
        return output | {"logits": output["logits"] * output["logit_scale"] / 10}

    with mock.patch.object(CoCaForward, "forward", scaling if scaled else forward):
        losses = trainer._step(batch)
    return {"gradients": found, "losses": losses}


def check_equal(found: dict, expected: dict) -> None:
    """Gradients and losses to 1e-5."""
    assert found["gradients"].keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        scale = gradient.abs().max().clamp(min=1)
        torch.testing.assert_close(found["gradients"][name] / scale, gradient / scale, atol=1e-5, rtol=0, msg=name)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5, abs=1e-5)


def train(settings: dict, steps: int | None = None) -> None:
    """A run, stopped before it takes more than so many steps."""
    taken, step = [], CaptionTrainer._step

    def stopping(self, batch):
        if len(taken) == steps:
            raise KeyboardInterrupt
        taken.append(batch)
        return step(self, batch)

    with mock.patch.object(CaptionTrainer, "_step", stopping):
        try:
            run(FinetuneConfig(**settings))
        except KeyboardInterrupt:
            assert steps is not None


if __name__ == "__main__":
    todo = json.loads(sys.argv[2])
    found = [gradients_of_a_step(**settings) for settings in todo.get("gradients", [])]
    if os.environ["RANK"] == "0":
        torch.save(found, Path(sys.argv[1]))
    for settings, steps in todo.get("runs", []):
        train(settings, steps)
    if torch.distributed.is_initialized():  # a run that ends leaves none
        torch.distributed.destroy_process_group()
