"""Validation while a captioner trains: losses and captions on pictures that it does not train on, log, page, best weights."""

import dataclasses
import json
from typing import Any

import torch

from captioners.base import TrainableCaptioner
from captioners.search import evaluating
from finetune.batching import CaptionedPictures
from finetune.checkpoints import BEST, VALIDATION_LOG
from finetune.config import FinetuneConfig
from finetune.losses import Losses, caption_loss, contrastive_loss
from finetune.trainer import Trainer
from finetune.training_page import write_training_page
from finetune.validation import evenly, validate
from imagetext.sources import read_samples


def held_out_pictures(config: FinetuneConfig, captioner: TrainableCaptioner, pictures: CaptionedPictures
                      ) -> CaptionedPictures | None:
    """Those of --eval-input, or some that are taken out of the input, at most a twentieth of it; None where there are none."""
    most, options = config.hold_out, {"long_captions": config.long_captions, "quiet": True}
    if config.eval_input:
        shards = read_samples(config.eval_input, config.images, columns=config.table, needs=("pictures", "captions"))
        read = CaptionedPictures(shards, captioner, **options)
        chosen = evenly(len(read), most or len(read))
        samples = [dataclasses.replace(read.samples[index], image=read.encoded(index)) for index in chosen]
    elif count := min(most, len(pictures) // 20):
        samples = pictures.hold_out(count, config.seed)
    else:
        return None
    return CaptionedPictures([samples], captioner, **options)


class HeldOut:
    """Called with the trainer, the step and the captions seen: validates, writes the page and a line of the log, and returns it."""

    def __init__(self, pictures: CaptionedPictures, name: str):
        self.pictures, self.name = pictures, name
        self.given = [(sample.key, pictures.image(index), sample.captions) for index, sample in enumerate(pictures.samples)]

    def __call__(self, trainer: Trainer, step: int, samples: int) -> dict[str, Any]:
        folder = trainer.config.output
        log = folder / VALIDATION_LOG
        with trainer.trained() as captioner:
            found = validate(captioner, self.given, similarity=trainer.forward.contrasts)
            losses = losses_on(self.pictures, trainer)
            earlier = [json.loads(line)["caption"] for line in log.read_text().splitlines()] if log.exists() else []
            if losses["caption"] < min(earlier, default=float("inf")):
                captioner.save(folder / BEST, self.name)
        line = {"step": step, "samples": samples, **losses, **found.scores, "human": found.human,
                "samples_shown": found.shown, "warning": found.warning}
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if found.warning:
            print(f"\n{found.warning}", flush=True)
        trainer.accelerator.log({f"held_out/{name}": value for name, value in (losses | found.scores).items()}, step)
        shown = {sample.key: index for index, sample in enumerate(self.pictures.samples) if sample.key in found.shown}
        write_training_page(folder, name=self.name,
                            pictures={key: self.pictures.encoded(index) for key, index in shown.items()},
                            references={key: self.pictures.samples[index].captions for key, index in shown.items()})
        return line


@torch.no_grad()
def losses_on(pictures: CaptionedPictures, trainer: Trainer, batch_size: int = 64) -> dict[str, float]:
    """The losses of pictures that are not trained on, with a caption each: per token, and in batches of so many pictures."""
    forward, tokens = trainer.forward, 0
    sums: Losses = {name: torch.zeros(()) for name in forward.weights}
    for at in range(0, len(pictures), batch_size):
        items = [pictures[index, 0] for index in range(at, min(at + batch_size, len(pictures)))]
        part, = pictures.collate(items).parts(1, trainer.accelerator.device, forward.pad_id)
        with trainer.accelerator.autocast(), evaluating(forward):
            output = forward(part.images, part.tokens)
        sums["caption"] += caption_loss(output["logits"], output["labels"]).cpu()
        tokens += len(output["labels"])
        if forward.contrasts:
            image, text = (output[name].float() for name in ("image_features", "text_features"))
            sums["contrastive"] += contrastive_loss(image, text, output["logit_scale"], part.pictures).cpu() * len(items)
    counts = {"caption": tokens, "contrastive": len(pictures)}
    return {name: loss.item() / counts[name] for name, loss in sums.items()}
