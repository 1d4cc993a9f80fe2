"""The settings of `capsmith train-student`. This file imports no torch, so that --help is quick."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from finetune.config import TrainingConfig, check_held_out, parse_count
from imagetext.readers.labels import FOLDER
from imagetext.sets.room import check_pattern


class StudentConfig(TrainingConfig):
    """Train a CLIP model on records of a reinforced set."""

    command: ClassVar[str] = "train-student"
    # Settings of captioners that the trainer needs, too. For a student they are constants.
    captions_per_image: ClassVar[int] = 1  # a record counts once, however many of its texts are trained on
    layer_decay: ClassVar[float] = 1.0
    shard: ClassVar[bool] = False

    input: list[str] = Field(
        min_length=1, description="reinforced records to train on: shards, JSONL or Parquet; repeatable"
    )
    student: str = Field(
        description="CLIP model to train: an open_clip architecture, or a folder with open_clip_config.json"
    )
    output: Path = Field(description="folder for the trained student, its logs and its checkpoints")
    pretrained: str | None = Field(
        None,
        description="weights of an open_clip architecture to start from: a tag of open_clip or a file (default: the "
        "weights of a --student folder that has some, otherwise random weights)",
    )
    eval_input: list[str] = Field(
        [],
        description="captioned pictures to validate on by retrieval; any input of `capsmith finetune`; repeatable",
    )
    eval_classes: list[str] = Field(
        [],
        description="labelled pictures to validate on by zero-shot classification; any input of `capsmith "
        "zero-shot`; repeatable",
    )
    label: str = Field(
        FOLDER,
        min_length=1,
        description="where the class of an --eval-classes picture is given. folder: the name of the picture's folder; "
        "cls: the .cls file of a webdataset; otherwise the name of a field or column",
    )
    class_names: str | None = Field(
        None,
        description="names of the --eval-classes classes: a file with a name or ID<tab>NAME in each line, or imagenet "
        "for open_clip's names, by class number or WordNet id (default: the labels themselves)",
    )
    templates: str = Field(
        "imagenet",
        description="templates that turn a class name into texts: imagenet (open_clip's 80), simple (open_clip's 7), "
        "plain ('a photo of a {}.'), name (the name alone), or a file with a template in each line",
    )
    columns: Annotated[str, AfterValidator(check_pattern)] = Field(
        "^syn_text",
        description="regular expression for the names of the columns with synthetic captions, matched from the start "
        "of the name",
    )
    text_weight: float = Field(1.0, ge=0, description="weight of the losses of original captions")
    synthetic_weight: float = Field(1.0, ge=0, description="weight of the losses of synthetic captions")
    single_text: float | None = Field(
        None,
        ge=0,
        le=1,
        description="train on one text of a record at a time: with this probability a synthetic caption, from a "
        "column drawn at random, otherwise the original caption (default: one text of each kind at a time)",
    )
    negatives: Annotated[str, AfterValidator(check_pattern)] | None = Field(
        None,
        description="regular expression for the names of the columns with hard negatives, e.g. ^neg_text: captions "
        "that are false of their picture, of which one is drawn each time (default: no hard negatives)",
    )
    negative_weight: float | None = Field(
        None,
        ge=0,
        description="weight of the loss that hard negatives add (default: 1, as in NegCLIP); 0: use hard negatives in "
        "validation only",
    )
    distill_weight: float = Field(
        1.0,
        ge=0,
        description="weight of the loss of distillation from the teachers; 0: the teachers' embeddings are not read",
    )
    contrastive_weight: float = Field(0.0, ge=0, description="weight of CLIP's contrastive loss")
    logit_scale: list[Annotated[float, Field(gt=0)]] = Field(
        [],
        description="logit scale of each teacher, in the order of the embeddings; repeatable (default: those in the "
        "set's config.json)",
    )
    teacher_dimension: list[Annotated[int, Field(gt=0)]] = Field(
        [],
        description="embedding dimension of each teacher, for sets whose config.json does not name the teachers; "
        "repeatable",
    )
    samples_seen: Annotated[int, BeforeValidator(parse_count)] = Field(
        12_000_000, gt=0, description="length of the training in records, e.g. 12M; a smaller set is repeated"
    )
    batch_size: int = Field(
        256,
        gt=1,
        description="number of records in a step, over all devices together; at least 2, because each record is "
        "compared with the others",
    )
    device_batch_size: int | None = Field(
        None,
        gt=0,
        description="number of records that a device processes at a time; a smaller number saves memory and does not "
        "change the result, because gradients are accumulated; models with batch normalisation are an exception, "
        "because they normalise over these records (default: all of its records of a step)",
    )
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(
        0.2, ge=0, description="weight decay of matrices; norms, biases and embeddings are not decayed"
    )
    validate_every: Annotated[int, BeforeValidator(parse_count)] | None = Field(
        None,
        gt=0,
        description="number of records between validations, e.g. 500k (default: 1M, or an eighth of --samples-seen if "
        "that is less); there is also one before the first step and one at the end",
    )
    num_workers: int | None = Field(
        None,
        ge=0,
        description="number of processes that make views, for each training process (default: its share of the CPU "
        "cores when training on a GPU, 1 when training on a CPU)",
    )
    max_error_rate: float = Field(
        0.1,
        ge=0,
        le=1,
        description="largest share of the records that may be unusable; if there are more, the run stops before it "
        "trains",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="seed of the order of the records, the choice of views and texts, and of random weights",
    )

    @field_validator("eval_input", "eval_classes")
    @classmethod
    def _check_held_out(cls, specs: list[str], info: ValidationInfo) -> list[str]:
        return check_held_out(specs, info.data.get("input", []))

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        problems = []
        if not self.distill_weight and not self.contrastive_weight:
            problems.append("--distill-weight and --contrastive-weight are both 0: there is no loss")
        if not self.text_weight and not self.synthetic_weight:
            problems.append("--text-weight and --synthetic-weight are both 0: there are no texts")
        if not self.distill_weight and (self.logit_scale or self.teacher_dimension):
            problems.append("--logit-scale, --teacher-dimension: not used with --distill-weight 0")
        if self.single_text is not None and (self.text_weight, self.synthetic_weight) != (1, 1):
            problems.append(
                "--text-weight, --synthetic-weight: not used with --single-text, which has one loss for both kinds of "
                "captions"
            )
        if self.negative_weight is not None and not self.negatives:
            problems.append("--negative-weight: needs --negatives, which names the columns, e.g. ^neg_text")
        defaults = {"label": FOLDER, "class_names": None, "templates": "imagenet"}  # of the settings of --eval-classes
        if not self.eval_classes:
            problems += [
                f"--{name.replace('_', '-')}: is a setting of --eval-classes, which is not given"
                for name, default in defaults.items()
                if getattr(self, name) != default
            ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def kinds(self) -> dict[str, float]:
        """The kinds of texts to train on, each with its loss's weight, or its probability with --single-text."""
        weights = {"text": self.text_weight, "synthetic": self.synthetic_weight}
        if self.single_text is not None:
            weights = {"text": 1 - self.single_text, "synthetic": self.single_text}
        return {kind: weight for kind, weight in weights.items() if weight}

    @property
    def text_weights(self) -> Sequence[float]:
        """The weights of the losses of a record's texts, in the order in which the texts are drawn."""
        return (1.0,) if self.single_text is not None else tuple(self.kinds.values())

    @property
    def weight_of_negatives(self) -> float:
        """The weight of the loss that hard negatives add; 0 if there are no hard negatives."""
        if not self.negatives:
            return 0.0
        return 1.0 if self.negative_weight is None else self.negative_weight
