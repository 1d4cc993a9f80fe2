"""Retrieval on held-out pictures by a student, and how well it tells captions from hard negatives.

P: pictures, T: different texts, E: embedding dimension
"""

import json
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from captioners.clip import preprocessing
from captioners.decoding.search import evaluating
from diversity.measures.measure import Measure
from finetune.checkpoints import VALIDATION_LOG
from finetune.page import write_training_page
from finetune.rejects import first_of, why_no_caption
from finetune.student.classes import SCORES as CLASS_SCORES
from finetune.student.classes import HeldOutClasses
from finetune.student.model import Student
from finetune.student.negatives import hard_negatives
from finetune.trainer import Trainer
from finetune.validation import CONTRASTIVE_LOSS
from imagetext.lock import check_lock
from imagetext.sample import Record, decode_image
from imagetext.shown import Progress

FIRST = (1, 5)  # numbers of retrieved items that count: R@1 and R@5
BATCH = 64

DISTILLATION_LOSS = Measure(
    ("distill",),
    "Distillation loss",
    "Cross-entropy between the teachers' and the student's probabilities of the batch's texts given a picture, and of "
    "its pictures given a text: the mean of both, summed over original and synthetic captions with their weights, in "
    "nats. At best it is the teachers' own entropy, so compare at one batch size and set of teachers only.",
    better="lower",
)
SCORES = tuple(
    Measure(
        (f"{direction}_r{first}",),
        f"{label} R@{first}",
        f"Share of {queries} for which a right one is among the first {first} {results} found. 0 to 100 %; the more "
        "held-out pictures there are, the harder it is. Captions of the same words count as one.",
        unit="percent",
        better="higher",
    )
    for direction, label, queries, results in (
        ("image_to_text", "Picture to caption", "pictures", "captions"),
        ("text_to_image", "Caption to picture", "captions", "pictures"),
    )
    for first in FIRST
)
NEGATIVE_LOSS = Measure(
    ("negative",),
    "Hard negatives' loss",
    "How much the cross-entropy of a batch's texts given a picture grows if hard negatives are added to the texts: "
    "half the mean over pictures, summed over texts like the other losses, in nats. From 0; compare at one batch size "
    "only. Yuksekgonul et al. 2022.",
    better="lower",
)
CHOICE = Measure(
    ("choice",),
    "True before negative",
    "How often a picture is nearer to its caption than to its hard negative, mean over the captions and negatives of "
    "a picture, then over those that have any. 0 to 100 %; 50 % is chance.",
    unit="percent",
    better="higher",
)
WITH_NEGATIVE = Measure(
    ("with_negative",),
    "With a negative",
    "Records that have a hard negative ÷ records: of a batch in training, of the usable pictures in validation.",
    unit="percent",
)
MEASURES = (DISTILLATION_LOSS, CONTRASTIVE_LOSS, NEGATIVE_LOSS, *SCORES, CHOICE, WITH_NEGATIVE, *CLASS_SCORES)


def recall(image: Tensor, text: Tensor, right: Tensor) -> dict[str, float]:
    """Return R@1 and R@5 in both directions for features (P, E) and (T, E).

    right (P, T): whether each text is a caption of each picture.
    """
    similarities = image @ text.T
    scores = {}
    for direction, scored, correct in (
        ("image_to_text", similarities, right),
        ("text_to_image", similarities.T, right.T),
    ):
        best = scored.topk(min(max(FIRST), scored.shape[1]), dim=1).indices
        hits = correct.gather(1, best)
        scores |= {f"{direction}_r{first}": hits[:, :first].any(1).double().mean().item() for first in FIRST}
    return scores


def choice(image: Tensor, text: Tensor, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, float]:
    """Return how often pictures (P, E) are nearer to their captions than to their negatives; {} if there are none.

    Both are among the texts (T, E). pairs: for each picture, the indices of its captions and of its negatives.
    """
    won = [
        ((text[captions] @ picture)[:, None] > text[negatives] @ picture).double().mean()
        for picture, (captions, negatives) in zip(image, pairs, strict=True)
        if negatives
    ]
    if not won:
        return {}
    return {"with_negative": len(won) / len(image), "choice": torch.stack(won).mean().item()}


@torch.inference_mode()
def retrieval(student: Student, samples: Sequence[Record], negatives: str | None = None) -> dict[str, float]:
    """Return the recall of a student on captioned pictures, and how often it prefers captions to hard negatives.

    Equal captions of several pictures count as one text. negatives: pattern for the names of the columns with
    negatives.
    """
    device = student.model.logit_scale.device
    preprocess = preprocessing(student.preprocess_cfg)
    captions = dict.fromkeys(text for sample in samples for text in sample.captions)
    negative_texts = [list(chain.from_iterable(hard_negatives(sample, negatives))) for sample in samples]
    texts = list(captions | dict.fromkeys(chain.from_iterable(negative_texts)))
    text_index = {text: index for index, text in enumerate(texts)}
    pairs = [
        ([text_index[text] for text in sample.captions], [text_index[text] for text in false_texts])
        for sample, false_texts in zip(samples, negative_texts, strict=True)
    ]
    right = torch.zeros(len(samples), len(captions), dtype=torch.bool, device=device)
    for row, (caption_indices, _) in zip(right, pairs, strict=True):
        row[caption_indices] = True
    image_parts, text_parts = [], []
    with evaluating(student.model):
        for start in range(0, len(samples), BATCH):
            pixels = torch.stack([preprocess(decode_image(sample.image)) for sample in samples[start : start + BATCH]])
            image_parts.append(student.model.encode_image(pixels.to(device), normalize=True).float())
        for start in range(0, len(texts), BATCH):
            tokens = student.tokenizer(texts[start : start + BATCH]).to(device)
            text_parts.append(student.model.encode_text(tokens, normalize=True).float())
    image, text = torch.cat(image_parts), torch.cat(text_parts)
    with torch.autocast(device.type, enabled=False):  # in half precision, many cosines would be equal
        return recall(image, text[: len(captions)], right) | choice(image, text, pairs)


def usable_records(samples: Iterable[Record], *, quiet: bool) -> tuple[list[Record], list[tuple[str, str]]]:
    """Return the records that have a caption and a picture that decodes, and key and reason of the others.

    Rows that the input itself marks as failed are in neither list. Raises ValueError if no record can be used.
    """
    usable, rejects = [], []
    for sample in Progress(samples, desc="reading held-out pictures", unit="picture", mininterval=1, disable=quiet):
        try:
            decode_image(sample.image)
        except ValueError as error:
            if not sample.failed_before:
                rejects.append((sample.key, sample.error or str(error)))
            continue
        if any(text.strip() for text in sample.captions):
            usable.append(sample)
        else:
            rejects.append((sample.key, sample.error or why_no_caption(sample)))
    if not usable:
        raise ValueError(f"--eval-input: no usable captioned picture{first_of(rejects)}")
    return usable, rejects


class HeldOutRetrieval:
    """Validates a student on held-out pictures, writes the page and a row of the log, and returns the row.

    Called by the trainer, with itself, the step, and the number of records seen so far.
    """

    def __init__(self, samples: Sequence[Record], negatives: str | None = None, classes: HeldOutClasses | None = None):
        self.samples, self.negatives, self.classes = samples, negatives, classes

    def __call__(self, trainer: Trainer, step: int, records_seen: int) -> dict[str, Any]:
        with trainer.trained() as student, trainer.accelerator.autocast():
            scores = retrieval(student, self.samples, self.negatives) if self.samples else {}
            if self.classes:
                scores |= self.classes.scores(student)
        pictures = len(self.samples) + (self.classes.survey.usable if self.classes else 0)
        row = {"step": step, "samples": records_seen, "pictures": pictures, **scores}
        if self.classes:
            row["chance"] = self.classes.chance
        check_lock(trainer.config.output)
        with open(trainer.config.output / VALIDATION_LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        trainer.accelerator.log({f"held_out/{name}": value for name, value in scores.items()}, step)
        write_page(trainer)
        return row


def write_page(trainer: Trainer) -> None:
    """Write the page of a student's run."""
    output = trainer.config.output
    write_training_page(output, name=output.name, measures=MEASURES, title="Training", sample_kind="records")
