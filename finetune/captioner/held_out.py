"""Validation of a captioner during training: losses and scores on held-out pictures, log, page and best weights."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from captioners.base import TrainableCaptioner
from captioners.decoding.search import evaluating
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.pictures import CaptionedPictures
from finetune.checkpoints import BEST, VALIDATION_LOG, explain_write_errors
from finetune.identity import find_duplicates
from finetune.losses import Losses, caption_loss, contrastive_loss
from finetune.page import write_training_page
from finetune.rejects import check_rejects
from finetune.trainer import Trainer
from finetune.validation import evenly_spaced, validate
from imagetext.lock import check_lock
from imagetext.sample import Shard
from imagetext.shown import say


def eval_pictures(shards: Sequence[Shard], captioner: TrainableCaptioner, config: FinetuneConfig) -> CaptionedPictures:
    """Return at most --hold-out pictures of --eval-input, evenly spaced.

    Their `input_hashes`, `rejects` and `failed_before` are those of all of --eval-input. Raises ValueError if a larger
    share of it is broken or missing than `--max-error-rate` allows.
    """
    all_pictures = CaptionedPictures(
        shards, captioner, long_captions=config.long_captions, flag="--eval-input", quiet=True
    )
    check_rejects(all_pictures.rejects, len(all_pictures), config, flag="--eval-input")
    chosen = evenly_spaced(len(all_pictures), config.hold_out or len(all_pictures))
    records = [all_pictures.with_image(index) for index in chosen]
    pictures = CaptionedPictures([records], captioner, long_captions=config.long_captions, quiet=True)
    pictures.input_hashes = all_pictures.input_hashes
    pictures.rejects, pictures.failed_before = all_pictures.rejects, all_pictures.failed_before
    return pictures


def held_out_pictures(
    config: FinetuneConfig,
    captioner: TrainableCaptioner,
    pictures: CaptionedPictures,
    *,
    evaluation: CaptionedPictures | None,
    tell: Callable[[str], None],
) -> CaptionedPictures | None:
    """Return the pictures to validate on, and remove them and their duplicates from `pictures`.

    They are those of --eval-input (`evaluation`) if there are any, otherwise at most --hold-out of `pictures`, and at
    most a twentieth of them. Returns None if there are none. `tell` prints a line.
    """
    if evaluation:
        duplicates = find_duplicates(pictures, evaluation, range(len(evaluation)))
        if duplicates:
            tell(f"{len(duplicates):,} pictures of --input are also in --eval-input and are not trained on")
            pictures.leave_out(duplicates)
        return evaluation
    count_before, count = len(pictures), min(config.hold_out, len(pictures) // 20)
    if not count:
        if config.hold_out:
            tell(
                f"no validation: --input has only {len(pictures):,} pictures, and at most a twentieth of them is held "
                "out; name pictures to validate on with --eval-input"
            )
        return None
    samples = pictures.hold_out(count, config.seed)
    duplicate_count = count_before - count - len(pictures)
    if duplicate_count:
        tell(f"{count:,} pictures are held out; {duplicate_count:,} duplicates of them are not trained on, either")
    return CaptionedPictures([samples], captioner, long_captions=config.long_captions, quiet=True)


class HeldOut:
    """Validates a captioner on held-out pictures, writes the page and a row of the log, and returns the row.

    Called by the trainer, with itself, the step, and the number of captions seen so far.
    """

    def __init__(self, pictures: CaptionedPictures, name: str):
        self.pictures, self.name = pictures, name
        self.examples = [
            (sample.key, pictures.image(index), sample.captions) for index, sample in enumerate(pictures.samples)
        ]

    def __call__(self, trainer: Trainer, step: int, samples: int) -> dict[str, Any]:
        folder = trainer.config.output
        log = folder / VALIDATION_LOG
        with trainer.trained() as captioner:
            validation = validate(captioner, self.examples, similarity=trainer.forward.contrasts)
            losses = losses_on(self.pictures, trainer)
            rows = map(json.loads, log.read_text().splitlines()) if log.exists() else ()
            earlier_losses = [row["caption"] for row in rows if row["step"]]  # step 0, before training, does not count
            check_lock(folder)
            if step and losses["caption"] < min(filter(math.isfinite, earlier_losses), default=math.inf):
                with explain_write_errors(folder / BEST):
                    captioner.save(folder / BEST, self.name)
        row = {
            "step": step,
            "samples": samples,
            **losses,
            **validation.scores,
            "human": validation.human,
            "samples_shown": validation.examples,
            "warning": validation.warning,
        }
        if validation.warning:
            say("", *validation.warning.split("\n"))
        trainer.accelerator.log(
            {f"held_out/{name}": value for name, value in (losses | validation.scores).items()}, step
        )
        indices = {
            sample.key: index
            for index, sample in enumerate(self.pictures.samples)
            if sample.key in validation.examples
        }
        write_training_page(
            folder,
            name=self.name,
            newest=row,
            pictures={key: self.pictures.encoded(index) for key, index in indices.items()},
            references={key: self.pictures.samples[index].captions for key, index in indices.items()},
        )
        with open(log, "a", encoding="utf-8") as file:  # last, because a validation in the log is not repeated
            file.write(json.dumps(row) + "\n")
        return row


@torch.no_grad()
def losses_on(pictures: CaptionedPictures, trainer: Trainer, batch_size: int = 64) -> dict[str, float]:
    """Return the losses on held-out pictures with one caption each.

    The caption loss is a mean over tokens; the contrastive loss is a mean over batches of `batch_size` pictures,
    weighted by their sizes.
    """
    forward, token_count = trainer.forward, 0
    sums: Losses = {name: torch.zeros(()) for name in forward.weights}
    for start in range(0, len(pictures), batch_size):
        items = [pictures[index, 0] for index in range(start, min(start + batch_size, len(pictures)))]
        (batch,) = pictures.collate(items).parts(1, trainer.accelerator.device, forward.pad_id)
        with trainer.accelerator.autocast(), evaluating(forward):
            output = forward(batch.images, batch.tokens)
        sums["caption"] += caption_loss(output["logits"], output["labels"]).cpu()
        token_count += len(output["labels"])
        if forward.contrasts:
            image, text = (output[name].float() for name in ("image_features", "text_features"))
            loss = contrastive_loss(image, text, output["logit_scale"], pictures=batch.pictures)
            sums["contrastive"] += loss.cpu() * len(items)
    counts = {"caption": token_count, "contrastive": len(pictures)}
    return {name: loss.item() / counts[name] for name, loss in sums.items()}
