"""Gradients of one step, as a command that a launcher can start in several processes: `gradients.py FILE SETTINGS`."""

import json
import sys
from pathlib import Path

import torch

from captioners.coca import load_captioner
from finetune.batching import BatchOrder, CaptionedPictures, batches
from finetune.config import FinetuneConfig
from finetune.trainer import CaptionTrainer
from imagetext.sources import read_samples


def gradients_of_a_step(**settings) -> dict:
    """Each weight's gradient, the losses, and the batch's keys, of a step on the same pictures and weights, whatever the settings."""
    config = FinetuneConfig(**{"input": ["scenes:train,n=10,size=32"], "model": "coca_tiny", "output": "unused", "device": "cpu",
                               "batch_size": 8, "samples_seen": 8, "clip_grad_norm": 1e9} | settings)
    captioner = load_captioner("coca_tiny")
    pictures = CaptionedPictures(read_samples(config.input), captioner, captions_per_image=config.captions_per_image, quiet=True)
    pictures.samples[3] = pictures.samples[2]
    trainer = CaptionTrainer(config, captioner, pictures)
    found, step = {}, trainer.optimizer.step

    def noting() -> None:
        found.update({name: weight.grad.clone() for name, weight in captioner.model.named_parameters() if weight.grad is not None})
        step()

    trainer.optimizer.step = noting
    order = BatchOrder(pictures, 8, 1, 0, rank=trainer.accelerator.process_index, world=trainer.accelerator.num_processes)
    losses = trainer._step(next(iter(batches(order, 0))))
    return {"gradients": found, "losses": losses}


if __name__ == "__main__":
    found = gradients_of_a_step(**json.loads(sys.argv[2]))
    if torch.distributed.get_rank() == 0:
        torch.save(found, Path(sys.argv[1]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
