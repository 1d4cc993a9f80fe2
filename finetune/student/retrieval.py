"""How well a student finds the captions of pictures, and pictures by their captions, that it does not train on.

P: pictures, T: different captions, E: embedding
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from captioners.clip import preprocessing
from captioners.decoding.search import evaluating
from diversity.measures.catalogue import Measure
from finetune.checkpoints import VALIDATION_LOG
from finetune.page import write_training_page
from finetune.student.model import Student
from finetune.trainer import Trainer
from finetune.validation import CONTRASTIVE_LOSS
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
MEASURES = (DISTILLATION_LOSS, CONTRASTIVE_LOSS, *SCORES)


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


@torch.inference_mode()
def retrieval(student: Student, samples: Sequence[Record]) -> dict[str, float]:
    """The recall of a student on pictures with captions; captions of the same words are one."""
    device = student.model.logit_scale.device
    preprocess = preprocessing(student.preprocess_cfg)
    texts = list(dict.fromkeys(text for sample in samples for text in sample.captions))
    number = {text: at for at, text in enumerate(texts)}
    right = torch.zeros(len(samples), len(texts), dtype=torch.bool, device=device)
    for row, sample in zip(right, samples, strict=True):
        row[[number[text] for text in sample.captions]] = True
    image, text = [], []
    with evaluating(student.model):
        for at in range(0, len(samples), BATCH):
            pixels = torch.stack([preprocess(decode_image(sample.image)) for sample in samples[at : at + BATCH]])
            image.append(student.model.encode_image(pixels.to(device), normalize=True).float())
        for at in range(0, len(texts), BATCH):
            text.append(
                student.model.encode_text(student.tokenizer(texts[at : at + BATCH]).to(device), normalize=True).float()
            )
    return recall(torch.cat(image), torch.cat(text), right)


def usable(samples: Iterable[Record], *, quiet: bool) -> list[Record]:
    """Those that have a caption and a picture that decodes; ValueError where there are none."""
    found = []
    for sample in Progress(samples, desc="reading held-out pictures", unit="picture", mininterval=1, disable=quiet):
        try:
            decode_image(sample.image)
        except ValueError:
            continue
        if any(text.strip() for text in sample.captions):
            found.append(sample)
    if not found:
        raise ValueError("--eval-input: no usable captioned picture")
    return found


class HeldOutRetrieval:
    """Called with the trainer, the step and the records seen: validates, writes the page and a line of the log, and returns it."""

    def __init__(self, samples: Sequence[Record]):
        self.samples = samples

    def __call__(self, trainer: Trainer, step: int, seen: int) -> dict[str, Any]:
        with trainer.trained() as student, trainer.accelerator.autocast():
            scores = retrieval(student, self.samples)
        found = {"step": step, "samples": seen, "pictures": len(self.samples), **scores}
        with open(trainer.config.output / VALIDATION_LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        trainer.accelerator.log({f"held_out/{name}": value for name, value in scores.items()}, step)
        write_page(trainer)
        return found


def write_page(trainer: Trainer) -> None:
    """Writes the page of a student's run."""
    output = trainer.config.output
    write_training_page(output, name=output.name, measures=MEASURES, title="Training", seen="records")
