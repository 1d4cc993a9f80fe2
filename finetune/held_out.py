"""Validation while a captioner trains: losses and captions on pictures that it does not train on, log, page, best weights."""

import dataclasses
import json

import torch

from captioners.base import Captioner
from captioners.search import evaluating
from finetune.batching import CaptionedPictures
from finetune.checkpoints import BEST, VALIDATION_LOG
from finetune.config import FinetuneConfig
from finetune.losses import caption_loss, contrastive_loss
from finetune.trainer import Trainer
from finetune.training_page import write_training_page
from finetune.validation import evenly, validate
from imagetext.sources import read_samples


def held_out_pictures(config: FinetuneConfig, captioner: Captioner, pictures: CaptionedPictures) -> CaptionedPictures | None:
    """Those of --eval-input, or some that are taken out of the input, at most a twentieth of it; None where there are none."""
    most, options = config.hold_out, {"long_captions": config.long_captions, "quiet": True}
    if config.eval_input:
        read = CaptionedPictures(read_samples(config.eval_input, config.images), captioner, **options)
        chosen = evenly(len(read), most or len(read))
        samples = [dataclasses.replace(read.samples[index], image=read.encoded(index)) for index in chosen]
    elif count := min(most, len(pictures) // 20):
        samples = pictures.hold_out(count, config.seed)
    else:
        return None
    return CaptionedPictures([samples], captioner, **options)


class HeldOut:
    """Called with the step and the captions seen: validates, and writes a line of the log and the page anew."""

    def __init__(self, trainer: Trainer, pictures: CaptionedPictures):
        self.trainer, self.pictures, self.folder = trainer, pictures, trainer.config.output
        self.given = [(sample.key, pictures.image(index), sample.captions) for index, sample in enumerate(pictures.samples)]
        self.last: dict = {}

    def __call__(self, step: int, samples: int) -> None:
        trainer, log = self.trainer, self.folder / VALIDATION_LOG
        with trainer.trained() as captioner:
            found = validate(captioner, self.given, similarity=trainer.forward.contrasts)
            losses = losses_on(self.pictures, trainer)
            earlier = [json.loads(line)["caption"] for line in log.read_text().splitlines()] if log.exists() else []
            if losses["caption"] < min(earlier, default=float("inf")):
                captioner.save(self.folder / BEST, captioner.name)
        self.last = {"step": step, "samples": samples, **losses, **found.scores, "human": found.human,
                     "samples_shown": found.shown, "warning": found.warning}
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(self.last) + "\n")
        if found.warning:
            print(f"\n{found.warning}", flush=True)
        trainer.accelerator.log({f"held_out/{name}": value for name, value in (losses | found.scores).items()}, step)
        shown = {sample.key: index for index, sample in enumerate(self.pictures.samples) if sample.key in found.shown}
        write_training_page(self.folder, name=captioner.name,
                            pictures={key: self.pictures.encoded(index) for key, index in shown.items()},
                            references={key: self.pictures.samples[index].captions for key, index in shown.items()})


@torch.no_grad()
def losses_on(pictures: CaptionedPictures, trainer: Trainer, batch_size: int = 64) -> dict[str, float]:
    """The losses of pictures that are not trained on, with a caption each: per token, and in batches of so many pictures."""
    forward, totals = trainer.forward, torch.zeros(3)
    for at in range(0, len(pictures), batch_size):
        items = [pictures[index, 0] for index in range(at, min(at + batch_size, len(pictures)))]
        part, = pictures.collate(items).parts(1, trainer.accelerator.device, forward.pad_id)
        with trainer.accelerator.autocast(), evaluating(forward):
            output = forward(part.images, part.tokens)
        features = [output[name].float() for name in ("image_features", "text_features")] if forward.contrasts else []
        contrastive = contrastive_loss(*features, output["logit_scale"], part.pictures) if features else 0.0
        caption, tokens = caption_loss(output["logits"], output["labels"]), len(output["labels"])
        totals += torch.tensor([caption, tokens, contrastive * len(items)])
    losses = {"caption": (totals[0] / totals[1]).item()}
    return losses | ({"contrastive": totals[2].item() / len(pictures)} if forward.contrasts else {})
