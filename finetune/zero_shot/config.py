"""The settings of `capsmith zero-shot`. This file imports no torch, so that --help is quick."""

from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from imagetext.readers.labels import FOLDER
from imagetext.readers.table_flags import TableFlags


class ZeroShotConfig(TableFlags):
    """Measure how often CLIP models choose the right class of a picture from the names of the classes alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: list[str] = Field(
        min_length=1,
        description="CLIP model: coca_tiny, open_clip's ARCHITECTURE:TAG or ARCHITECTURE:FILE, a folder (also of a "
        "student or a CoCa captioner), or org/name on the Hub; repeatable, and then the models are compared",
    )
    input: list[str] = Field(
        min_length=1,
        description="labelled pictures to classify: shards, a folder, JSONL, Parquet or datasets:…; repeatable",
    )
    output: Path = Field(description="folder for zero_shot.json, zero_shot.html and predictions.jsonl")
    label: str = Field(
        FOLDER,
        min_length=1,
        description="where the class of a picture is given. folder: the name of the picture's folder; cls: the .cls "
        "file of a webdataset; otherwise the name of a field or column",
    )
    class_names: str | None = Field(
        None,
        description="names of the classes: a file with a name or ID<tab>NAME in each line, or imagenet for "
        "open_clip's names, by class number or WordNet id (default: the labels themselves)",
    )
    templates: str = Field(
        "imagenet",
        description="templates that turn a class name into texts: imagenet (open_clip's 80), simple (open_clip's 7), "
        "plain ('a photo of a {}.'), name (the name alone), or a file with a template in each line",
    )
    hierarchy: str | None = Field(
        None,
        description="rank the answers that a model is unsure of again, with the help of parent and child classes: "
        "wordnet (nltk's corpus), or a file with CHILD<tab>PARENT in each line (default: no second ranking)",
    )
    support: list[str] = Field(
        [],
        description="other labelled pictures, of which a few of each class help to classify --input, without any "
        "training; repeatable",
    )
    shots: int = Field(
        16,
        gt=0,
        description="number of pictures of each class to draw from --support; smaller numbers are measured, too",
    )
    column: list[str] = Field(
        [],
        description="caption column whose descriptions of the --support pictures also help; each column is measured "
        "separately: syn_text_…, or captions; repeatable (default: all columns of the set)",
    )
    batch_size: int = Field(64, gt=0, description="number of pictures that a model processes at a time")
    dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="number format that the models compute in")
    device: str | None = Field(
        None, description="device to compute on: cpu, cuda, … (default: the best device of this machine)"
    )
    num_workers: int | None = Field(
        None, gt=0, description="number of threads that decode pictures (default: one for each CPU core)"
    )
    max_error_rate: float = Field(
        0.1,
        ge=0,
        le=1,
        description="largest share of pictures that may be unusable; if more have no label, the run stops at once; if "
        "more cannot be used in all, the report is written and the exit code is 3",
    )
    seed: int = Field(
        0, ge=0, description="seed of the confidence intervals and tests, and of the choice of --support pictures"
    )
    overwrite: bool = Field(False, description="replace an earlier report in the --output folder")

    @field_validator("model")
    @classmethod
    def _check_distinct(cls, models: list[str]) -> list[str]:
        repeated = sorted({name for name in models if models.count(name) > 1})
        if repeated:
            raise ValueError(f"given twice: {', '.join(repeated)}")
        return models

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.hierarchy and self.templates == "name":
            raise ValueError(
                "--hierarchy: needs several templates, because a model is unsure where they disagree, and "
                "--templates name is a single one"
            )
        if self.column and not self.support:
            raise ValueError("--column: is a setting of --support, which is not given")
        return self
