"""Zero-shot classification of held-out pictures by a student, measured as `capsmith zero-shot` does."""

from itertools import chain

import numpy as np
import torch
from torch import Tensor

from captioners.clip import preprocessing
from captioners.decoding.search import evaluating
from finetune.rejects import check_rejects
from finetune.student.config import StudentConfig
from finetune.student.model import Student
from finetune.zero_shot.classify import class_features, nearest_classes, read_templates
from finetune.zero_shot.pictures import prepare_batches, read_labelled, survey_labels, workers
from finetune.zero_shot.scores import MEASURES, accuracy

PREFIX = "zero_shot_"
SCORES = tuple(
    measure._replace(path=(PREFIX + measure.score,), label=f"Zero-shot {measure.label[0].lower()}{measure.label[1:]}")
    for measure in MEASURES
)
BATCH = 64


class HeldOutClasses:
    """Labelled pictures, which are read again for each validation, so that a large set need not fit into memory.

    Raises ValueError if the set or its labels cannot be read, or if more pictures than allowed have no class.
    """

    def __init__(self, config: StudentConfig, *, quiet: bool = False):
        self.shards, names = read_labelled(
            config.eval_classes,
            config.images,
            table=config.table,
            label=config.label,
            class_names=config.class_names,
        )
        self.templates = read_templates(config.templates)
        self.survey = survey_labels(self.shards, names, flag="--eval-classes", quiet=quiet)
        check_rejects(self.survey.failed, self.survey.usable, config, flag="--eval-classes")

    @property
    def chance(self) -> dict[str, float]:
        """The scores of always answering the commonest classes, without looking at the pictures."""
        counts = sorted(self.survey.classes.pictures, reverse=True)
        scores = {
            name: sum(counts[:first]) / sum(counts)
            for name, first in (("top1", 1), ("top5", 5))
            if first < len(counts)
        }
        scores["per_class"] = 1 / sum(map(bool, counts))
        return {PREFIX + name: score for name, score in scores.items()}

    @torch.inference_mode()
    def scores(self, student: Student) -> dict[str, float]:
        """Return the student's SCORES; pictures that do not decode do not count, and top-5 needs six classes or more.

        Raises ValueError if no picture decodes.
        """
        device, model = student.model.logit_scale.device, student.model

        def embed_texts(texts: list[str]) -> Tensor:
            return model.encode_text(student.tokenizer(texts).to(device), normalize=True).float()

        class_indices = self.survey.classes.indices
        answers, labels = [], []
        with evaluating(model):
            classes = class_features(embed_texts, self.survey.classes.names, self.templates)
            transform = preprocessing(student.preprocess_cfg)
            records = chain.from_iterable(self.shards)
            for batch in prepare_batches(records, [transform], batch_size=BATCH, threads=workers(None)):
                usable = [picture for picture in batch if not picture.error]
                labels += [class_indices[picture.record.label or ""] for picture in usable]
                if usable:
                    pixels = torch.stack([picture.pixels[0] for picture in usable]).to(device)
                    features = model.encode_image(pixels, normalize=True).float()
                    with torch.autocast(device.type, enabled=False):  # in half precision, many cosines would be equal
                        answers.append(nearest_classes(features, classes).classes.cpu())
        if not answers:
            raise ValueError(f"--eval-classes: none of the {self.survey.pictures:,} pictures decodes")
        scores = accuracy(torch.cat(answers).numpy(), np.array(labels), len(class_indices))
        return {PREFIX + name: score for name, score in scores.items()}
