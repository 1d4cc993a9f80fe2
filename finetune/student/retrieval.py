"""How well a student finds captions and pictures that it does not train on, and tells captions from hard negatives.

P: pictures, T: different texts, E: embedding
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from captioners.clip import preprocessing
from captioners.decoding.search import evaluating
from diversity.measures.measure import Measure
from finetune.checkpoints import VALIDATION_LOG
from finetune.page import write_training_page
from finetune.student.classes import SCORES as CLASS_SCORES
from finetune.student.classes import HeldOutClasses
from finetune.student.model import Student
from finetune.student.negatives import hard_negatives
from finetune.trainer import Trainer
from finetune.validation import CONTRASTIVE_LOSS
from imagetext.lock import check_lock
from imagetext.sample import Record, decode_image
from imagetext.shown import Progress

FIRST = (1, 5)  # of what is found, that count
BATCH = 64

DISTILLATION_LOSS = Measure(
    ("distill",),
    "Distillation loss",
    "Cross-entropy of the teachers' and the student's probabilities of the batch's texts "
    "given a picture and of its pictures given a text, their mean, summed over original and synthetic captions with their weights, in "
    "nats. At best the teachers' own entropy, so compare at one batch size and set of teachers only.",
    better="lower",
)
SCORES = tuple(
    Measure(
        (f"{direction}_r{first}",),
        f"{label} R@{first}",
        f"Share of {asked} for which a right one is among the first {first} {found} found. 0 to 100 %; the more held-out "
        "pictures there are, the harder it is. Captions of the same words are one.",
        "percent",
        "higher",
    )
    for direction, label, asked, found in (
        ("image_to_text", "Picture to caption", "pictures", "captions"),
        ("text_to_image", "Caption to picture", "captions", "pictures"),
    )
    for first in FIRST
)
NEGATIVE_LOSS = Measure(
    ("negative",),
    "Hard negatives' loss",
    "What the cross-entropy of the texts of a batch given a picture grows by with hard negatives as further texts, half its mean "
    "over pictures, summed as the other losses are, in nats. From 0; compare at one batch size only. Yuksekgonul et al. 2022.",
    better="lower",
)
CHOICE = Measure(
    ("choice",),
    "True before negative",
    "How often a picture is nearer to its caption than to its hard negative, mean over the captions and negatives of a picture, "
    "then over those that have any. 0 to 100 %; 50 % is chance.",
    "percent",
    "higher",
)
WITH_NEGATIVE = Measure(
    ("with_negative",),
    "With a negative",
    "Records that have a hard negative ÷ records: of a batch in training, of the usable pictures in validation.",
    "percent",
)
MEASURES = (DISTILLATION_LOSS, CONTRASTIVE_LOSS, NEGATIVE_LOSS, *SCORES, CHOICE, WITH_NEGATIVE, *CLASS_SCORES)


def recall(image: Tensor, text: Tensor, right: Tensor) -> dict[str, float]:
    """R@1 and R@5 in both directions of features (P, E) and (T, E); right (P, T): which captions are whose."""
    similarities = image @ text.T
    scores = {}
    for direction, ranked, answers in (
        ("image_to_text", similarities, right),
        ("text_to_image", similarities.T, right.T),
    ):
        best = ranked.topk(min(max(FIRST), ranked.shape[1]), dim=1).indices
        hits = answers.gather(1, best)
        scores |= {f"{direction}_r{first}": hits[:, :first].any(1).double().mean().item() for first in FIRST}
    return scores


def choice(image: Tensor, text: Tensor, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, float]:
    """How often pictures (P, E) are nearer to a caption of theirs than to a negative, both among texts (T, E); {} without any.

    pairs: of each picture, the numbers of its captions and of its negatives.
    """
    won = [
        ((text[true] @ picture)[:, None] > text[false] @ picture).double().mean()
        for picture, (true, false) in zip(image, pairs, strict=True)
        if false
    ]
    share = {"with_negative": len(won) / len(image)}
    return share | {"choice": torch.stack(won).mean().item()} if won else {}


@torch.inference_mode()
def retrieval(student: Student, samples: Sequence[Record], negatives: str | None = None) -> dict[str, float]:
    """The recall of a student on pictures with captions, and its choices between these and the negatives in columns of this pattern.

    Captions of the same words are one.
    """
    device = student.model.logit_scale.device
    preprocess = preprocessing(student.preprocess_cfg)
    captions = dict.fromkeys(text for sample in samples for text in sample.captions)
    false = [[text for of in hard_negatives(sample, negatives) for text in of] for sample in samples]
    texts = list(captions | dict.fromkeys(text for of in false for text in of))
    number = {text: start for start, text in enumerate(texts)}
    true = [[number[text] for text in sample.captions] for sample in samples]
    right = torch.zeros(len(samples), len(captions), dtype=torch.bool, device=device)
    for row, numbers in zip(right, true, strict=True):
        row[numbers] = True
    found = []
    with evaluating(student.model):
        for start in range(0, len(samples), BATCH):
            pixels = torch.stack([preprocess(decode_image(sample.image)) for sample in samples[start : start + BATCH]])
            found.append(student.model.encode_image(pixels.to(device), normalize=True).float())
        image = torch.cat(found)
        found = []
        for start in range(0, len(texts), BATCH):
            tokens = student.tokenizer(texts[start : start + BATCH]).to(device)
            found.append(student.model.encode_text(tokens, normalize=True).float())
        text = torch.cat(found)
    pairs = [(of, [number[one] for one in negative]) for of, negative in zip(true, false, strict=True)]
    return recall(image, text[: len(captions)], right) | choice(image, text, pairs)


def usable_records(samples: Iterable[Record], *, quiet: bool) -> list[Record]:
    """Those that have a caption and a picture that decodes; ValueError where there are none."""
    good = []
    for sample in Progress(samples, desc="reading held-out pictures", unit="picture", mininterval=1, disable=quiet):
        try:
            decode_image(sample.image)
        except ValueError:
            continue
        if any(text.strip() for text in sample.captions):
            good.append(sample)
    if not good:
        raise ValueError("--eval-input: no usable captioned picture")
    return good


class HeldOutRetrieval:
    """Called with the trainer, the step and the records seen: validates, writes the page and a line of the log, and returns it."""

    def __init__(self, samples: Sequence[Record], negatives: str | None = None, classes: HeldOutClasses | None = None):
        self.samples, self.negatives, self.classes = samples, negatives, classes

    def __call__(self, trainer: Trainer, step: int, seen: int) -> dict[str, Any]:
        with trainer.trained() as student, trainer.accelerator.autocast():
            scores = retrieval(student, self.samples, self.negatives) if self.samples else {}
            if self.classes:
                scores |= self.classes.scores(student)
        pictures = len(self.samples) + (self.classes.usable if self.classes else 0)
        row = {"step": step, "samples": seen, "pictures": pictures, **scores}
        row |= {"chance": self.classes.chance} if self.classes else {}
        check_lock(trainer.config.output)
        with open(trainer.config.output / VALIDATION_LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        trainer.accelerator.log({f"held_out/{name}": value for name, value in scores.items()}, step)
        write_page(trainer)
        return row


def write_page(trainer: Trainer) -> None:
    """Writes the page of a student's run."""
    output = trainer.config.output
    write_training_page(output, name=output.name, measures=MEASURES, title="Training", sample_kind="records")
