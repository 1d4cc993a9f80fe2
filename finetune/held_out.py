"""Validation while a captioner trains: losses and captions on pictures that it does not train on, log, page, best weights."""

import dataclasses
import json

from captioners.base import Captioner
from finetune.batching import CaptionedPictures
from finetune.checkpoints import VALIDATION_LOG
from finetune.config import FinetuneConfig
from finetune.trainer import CaptionTrainer
from finetune.training_page import write_training_page
from finetune.validation import evenly, validate
from imagetext.sources import read_samples

BEST = "best"  # folder of the captioner with the lowest caption loss so far


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

    def __init__(self, trainer: CaptionTrainer, pictures: CaptionedPictures):
        self.trainer, self.pictures, self.folder = trainer, pictures, trainer.config.output
        self.given = [(sample.key, pictures.image(index), sample.captions) for index, sample in enumerate(pictures.samples)]
        self.last: dict = {}

    def __call__(self, step: int, samples: int) -> None:
        trainer, log = self.trainer, self.folder / VALIDATION_LOG
        with trainer.trained() as captioner:
            found = validate(captioner, self.given, similarity=trainer.forward.contrasts)
            losses = trainer.losses_on(self.pictures)
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
