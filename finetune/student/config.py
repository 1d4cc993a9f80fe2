"""The configuration of `capsmith train-student`; imports no torch, so that --help is quick."""

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
    # settings of captioners that the trainer asks for
    captions_per_image: ClassVar[int] = 1  # a record is counted once, however many of its texts are trained on
    layer_decay: ClassVar[float] = 1.0
    shard: ClassVar[bool] = False

    input: list[str] = Field(min_length=1, description="reinforced records: shards, JSONL, Parquet; repeatable")
    student: str = Field(
        description="model to train: an open_clip architecture, or a folder with open_clip_config.json"
    )
    output: Path = Field(description="folder for the student, its log and its checkpoint")
    pretrained: str | None = Field(
        None, description="weights of an architecture to start from, a tag or a file; else random ones"
    )
    eval_input: list[str] = Field(
        [], description="pictures with captions to validate on, by retrieval; any input of `finetune`"
    )
    eval_classes: list[str] = Field(
        [], description="labelled pictures to validate on, by their classes; any input of `zero-shot`"
    )
    label: str = Field(
        FOLDER,
        min_length=1,
        description="where the classes of --eval-classes stand: folder, cls, or a field or column, as for `zero-shot`",
    )
    class_names: str | None = Field(
        None,
        description="names of the classes: a file with one a line, or ID<tab>NAME; imagenet: open_clip's, by number or id",
    )
    templates: str = Field(
        "imagenet",
        description="what is said of a class: imagenet, simple, plain, name, or a file with a template a line",
    )
    columns: Annotated[str, AfterValidator(check_pattern)] = Field(
        "^syn_text", description="regular expression that the names of the caption columns to draw from start with"
    )
    text_weight: float = Field(1.0, ge=0, description="weight of the losses of original captions")
    synthetic_weight: float = Field(1.0, ge=0, description="weight of the losses of synthetic captions")
    single_text: float | None = Field(
        None,
        ge=0,
        le=1,
        description="one text of a record each time, not one of each kind: its original caption, or with this probability a "
        "synthetic one, of a column drawn evenly",
    )
    negatives: Annotated[str, AfterValidator(check_pattern)] | None = Field(
        None,
        description="regular expression that the names of columns of hard negatives start with, e.g. ^neg_text: captions that are "
        "false of their picture, one of them drawn each time",
    )
    negative_weight: float | None = Field(
        None,
        ge=0,
        description="weight of what hard negatives add to the losses of texts given pictures; 1, as in NegCLIP, unless given; 0: "
        "they are looked at in validation alone",
    )
    distill_weight: float = Field(
        1.0, ge=0, description="weight of the teachers' loss; 0: their embeddings are not read"
    )
    contrastive_weight: float = Field(0.0, ge=0, description="weight of CLIP's own loss")
    logit_scale: list[Annotated[float, Field(gt=0)]] = Field(
        [],
        description="of the teachers, one for each in the order of the embeddings; their own, of config.json, unless given",
    )
    teacher_dimension: list[Annotated[int, Field(gt=0)]] = Field(
        [], description="numbers of each teacher in an embedding, for sets whose config.json does not name them"
    )
    samples_seen: Annotated[int, BeforeValidator(parse_count)] = Field(
        12_000_000, gt=0, description="budget in records seen, e.g. 12M; a smaller set is repeated"
    )
    batch_size: int = Field(256, gt=0, description="records a step, over all devices")
    device_batch_size: int | None = Field(
        None,
        gt=0,
        description="records a device takes at a time; a step accumulates, exactly; unless given, its whole share",
    )
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.2, ge=0, description="of matrices; norms, biases and embeddings have none")
    validate_every: Annotated[int, BeforeValidator(parse_count)] | None = Field(
        None,
        gt=0,
        description="records seen between validations, e.g. 500k; 1M, or an eighth of a smaller budget, unless "
        "given; there is one before the first step and one at the end, too",
    )
    num_workers: int | None = Field(
        None,
        ge=0,
        description="processes that make views, for each process that trains; unless given, its share of the cores for "
        "a GPU, and one for a CPU",
    )
    max_error_rate: float = Field(
        0.1, ge=0, le=1, description="share of the records that may not be usable; more stop the run before it trains"
    )
    seed: int = Field(
        0, ge=0, description="of the order of records, the choice of views and texts, and random weights"
    )

    @field_validator("eval_input", "eval_classes")
    @classmethod
    def _is_not_the_input(cls, specs: list[str], info: ValidationInfo) -> list[str]:
        return check_held_out(specs, info.data.get("input", []))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = []
        if not self.distill_weight and not self.contrastive_weight:
            problems.append("--distill-weight and --contrastive-weight are both 0: there is no loss")
        if not self.text_weight and not self.synthetic_weight:
            problems.append("--text-weight and --synthetic-weight are both 0: there are no texts")
        if not self.distill_weight and (self.logit_scale or self.teacher_dimension):
            problems.append("--logit-scale, --teacher-dimension: not used with --distill-weight 0")
        if self.single_text is not None and (self.text_weight, self.synthetic_weight) != (1, 1):
            problems.append(
                "--text-weight, --synthetic-weight: weigh a loss of each kind of captions, and with --single-text there is one loss"
            )
        if self.negative_weight is not None and not self.negatives:
            problems.append("--negative-weight: of which columns? --negatives names them, e.g. ^neg_text")
        of_classes = {"label": FOLDER, "class_names": None, "templates": "imagenet"}  # settings with their defaults
        if not self.eval_classes:
            problems += [
                f"--{name.replace('_', '-')}: is of the pictures of --eval-classes, and there are none"
                for name, default in of_classes.items()
                if getattr(self, name) != default
            ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def kinds(self) -> dict[str, float]:
        """The kinds of texts that are trained on, each with the weight of its loss, or the probability that it is drawn."""
        weights = {"text": self.text_weight, "synthetic": self.synthetic_weight}
        if self.single_text is not None:
            weights = {"text": 1 - self.single_text, "synthetic": self.single_text}
        return {kind: weight for kind, weight in weights.items() if weight}

    @property
    def text_weights(self) -> Sequence[float]:
        """Of the losses of a record's texts, in the order in which these are drawn."""
        return (1.0,) if self.single_text is not None else tuple(self.kinds.values())

    @property
    def weight_of_negatives(self) -> float:
        """Of what they add to the losses; 0 without any."""
        return (1.0 if self.negative_weight is None else self.negative_weight) if self.negatives else 0.0
