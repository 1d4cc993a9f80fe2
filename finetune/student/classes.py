"""How often a student tells the class of pictures that it does not train on, as `capsmith zero-shot` has it."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from captioners.clip import preprocessing
from captioners.decoding.search import evaluating
from finetune.rejects import check_rejects
from finetune.student.config import StudentConfig
from finetune.student.model import Student
from finetune.zero_shot.classify import answers, class_features, read_templates
from finetune.zero_shot.pictures import prepare_batches, read_labelled, survey_labels, workers
from finetune.zero_shot.scores import MEASURES, accuracy
from imagetext.sample import Record

PREFIX = "zero_shot_"
SCORES = tuple(
    measure._replace(path=(PREFIX + measure.score,), label=f"Zero-shot {measure.label[0].lower()}{measure.label[1:]}")
    for measure in MEASURES
)
BATCH = 64


class HeldOutClasses:
    """Labelled pictures, read anew for each validation: a set of many need not fit in memory.

    Raises ValueError as `finetune.zero_shot.pictures` does, and where more pictures than may fail have no class.
    """

    def __init__(self, config: StudentConfig, *, quiet: bool = False):
        self.shards, names = read_labelled(
            config.eval_classes, config.images, config.table, config.label, config.class_names
        )
        self.templates = read_templates(config.templates)
        self.seen = survey_labels(self.shards, names, flag="--eval-classes", quiet=quiet)
        check_rejects(self.seen.failed, self.usable, config)

    @property
    def usable(self) -> int:
        """Pictures that have a class."""
        return self.seen.pictures - len(self.seen.failed)

    @property
    def chance(self) -> dict[str, float]:
        """The scores of who always gives the commonest classes for an answer, without a look at the pictures."""
        counts = sorted(self.seen.classes.pictures, reverse=True)
        best = {
            name: sum(counts[:first]) / sum(counts)
            for name, first in (("top1", 1), ("top5", 5))
            if first < len(counts)
        }
        best["per_class"] = 1 / sum(map(bool, counts))
        return {PREFIX + name: score for name, score in best.items()}

    def _records(self) -> Iterable[Record]:
        return (record for shard in self.shards for record in shard)

    @torch.inference_mode()
    def scores(self, student: Student) -> dict[str, float]:
        """Those of SCORES that there are with so many classes; pictures that do not decode count nothing.

        Raises ValueError where none decodes.
        """
        device, model = student.model.logit_scale.device, student.model

        def embed_texts(texts: list[str]) -> Tensor:
            return model.encode_text(student.tokenizer(texts).to(device), normalize=True).float()

        numbers = {label: number for number, label in enumerate(self.seen.classes.labels)}
        told, labels = [], []
        with evaluating(model):
            classes = class_features(embed_texts, self.seen.classes.names, self.templates)
            transform = preprocessing(student.preprocess_cfg)
            for batch in prepare_batches(self._records(), [transform], BATCH, workers(None)):
                good = [picture for picture in batch if not picture.error]
                labels += [numbers[picture.record.label or ""] for picture in good]
                if good:
                    pixels = torch.stack([picture.pixels[0] for picture in good]).to(device)
                    features = model.encode_image(pixels, normalize=True).float()
                    told.append(answers(features, classes).classes.cpu())
        if not told:
            raise ValueError(f"--eval-classes: none of the {self.seen.pictures:,} pictures decodes")
        scores = accuracy(torch.cat(told).numpy(), np.array(labels), len(numbers))
        return {PREFIX + name: score for name, score in scores.items()}
