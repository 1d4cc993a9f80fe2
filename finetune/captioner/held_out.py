"""Validation while a captioner trains: losses and captions on pictures that it does not train on, log, page, best weights."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from captioners.base import TrainableCaptioner
from captioners.decoding.search import evaluating
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.pictures import CaptionedPictures
from finetune.checkpoints import BEST, VALIDATION_LOG
from finetune.identity import find_duplicates
from finetune.losses import Losses, caption_loss, contrastive_loss
from finetune.page import write_training_page
from finetune.trainer import Trainer
from finetune.validation import evenly_spaced, validate
from imagetext.lock import check_lock
from imagetext.sample import Shard
from imagetext.shown import say


def eval_pictures(shards: Sequence[Shard], captioner: TrainableCaptioner, config: FinetuneConfig) -> CaptionedPictures:
    """Those of --eval-input, or of many --hold-out pictures, evenly spread; `read` is of all."""
    read = CaptionedPictures(shards, captioner, long_captions=config.long_captions, quiet=True)
    chosen = evenly_spaced(len(read), config.hold_out or len(read))
    records = [read.whole(index) for index in chosen]
    pictures = CaptionedPictures([records], captioner, long_captions=config.long_captions, quiet=True)
    pictures.read = read.read
    return pictures


def held_out_pictures(
    config: FinetuneConfig,
    captioner: TrainableCaptioner,
    pictures: CaptionedPictures,
    asked: CaptionedPictures | None,
    tell: Callable[[str], None],
) -> CaptionedPictures | None:
    """Those asked for, or some of the input, at most a twentieth; none stays in the input. None where there are none."""
    if asked:
        if both := find_duplicates(pictures, asked, range(len(asked))):
            tell(f"{len(both):,} pictures of --input are held out by --eval-input, and so are not trained on")
            pictures.leave_out(both)
        return asked
    before, count = len(pictures), min(config.hold_out, len(pictures) // 20)
    if not count:
        return None
    samples = pictures.hold_out(count, config.seed)
    if more := before - count - len(pictures):
        tell(f"{count:,} pictures are held out; {more:,} more that show one of these are not trained on, either")
    return CaptionedPictures([samples], captioner, long_captions=config.long_captions, quiet=True)


class HeldOut:
    """Called with the trainer, the step and the captions seen: validates, writes the page and a line of the log, and returns it."""

    def __init__(self, pictures: CaptionedPictures, name: str):
        self.pictures, self.name = pictures, name
        self.given = [
            (sample.key, pictures.image(index), sample.captions) for index, sample in enumerate(pictures.samples)
        ]

    def __call__(self, trainer: Trainer, step: int, samples: int) -> dict[str, Any]:
        folder = trainer.config.output
        log = folder / VALIDATION_LOG
        with trainer.trained() as captioner:
            validation = validate(captioner, self.given, similarity=trainer.forward.contrasts)
            losses = losses_on(self.pictures, trainer)
            rows = map(json.loads, log.read_text().splitlines()) if log.exists() else ()
            earlier = [row["caption"] for row in rows if row["step"]]  # what it began with is not among what it became
            check_lock(folder)
            if step and losses["caption"] < min(earlier, default=float("inf")):
                captioner.save(folder / BEST, self.name)
        line = {
            "step": step,
            "samples": samples,
            **losses,
            **validation.scores,
            "human": validation.human,
            "samples_shown": validation.shown,
            "warning": validation.warning,
        }
        if validation.warning:
            say("", *validation.warning.split("\n"))
        trainer.accelerator.log(
            {f"held_out/{name}": value for name, value in (losses | validation.scores).items()}, step
        )
        shown = {
            sample.key: index for index, sample in enumerate(self.pictures.samples) if sample.key in validation.shown
        }
        write_training_page(
            folder,
            name=self.name,
            newest=line,
            pictures={key: self.pictures.encoded(index) for key, index in shown.items()},
            references={key: self.pictures.samples[index].captions for key, index in shown.items()},
        )
        with open(log, "a", encoding="utf-8") as file:  # last: what the log tells of is not done again
            file.write(json.dumps(line) + "\n")
        return line


@torch.no_grad()
def losses_on(pictures: CaptionedPictures, trainer: Trainer, batch_size: int = 64) -> dict[str, float]:
    """The losses of pictures that are not trained on, with a caption each: per token, and in batches of so many pictures."""
    forward, tokens = trainer.forward, 0
    sums: Losses = {name: torch.zeros(()) for name in forward.weights}
    for start in range(0, len(pictures), batch_size):
        items = [pictures[index, 0] for index in range(start, min(start + batch_size, len(pictures)))]
        (part,) = pictures.collate(items).parts(1, trainer.accelerator.device, forward.pad_id)
        with trainer.accelerator.autocast(), evaluating(forward):
            output = forward(part.images, part.tokens)
        sums["caption"] += caption_loss(output["logits"], output["labels"]).cpu()
        tokens += len(output["labels"])
        if forward.contrasts:
            image, text = (output[name].float() for name in ("image_features", "text_features"))
            loss = contrastive_loss(image, text, output["logit_scale"], part.pictures)
            sums["contrastive"] += loss.cpu() * len(items)
    counts = {"caption": tokens, "contrastive": len(pictures)}
    return {name: loss.item() / counts[name] for name, loss in sums.items()}
