"""The configuration of `capsmith zero-shot`; imports no torch, so that --help is quick."""

from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from imagetext.readers.labels import FOLDER
from imagetext.readers.table_flags import TableFlags


class ZeroShotConfig(TableFlags):
    """How often CLIP models tell the class of pictures from the classes' names alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: list[str] = Field(
        min_length=1,
        description="CLIP model: coca_tiny, open_clip's ARCHITECTURE:TAG or ARCHITECTURE:FILE, a folder (students and CoCa "
        "captioners, too), org/name; repeatable, models are compared",
    )
    input: list[str] = Field(
        min_length=1, description="labelled pictures: shards, folder, JSONL, Parquet, datasets:…; repeatable"
    )
    output: Path = Field(description="folder for zero_shot.json, zero_shot.html and predictions.jsonl")
    label: str = Field(
        FOLDER,
        min_length=1,
        description="where the classes stand: folder, in which a picture lies; cls, webdataset's; or a field or column",
    )
    class_names: str | None = Field(
        None,
        description="names of the classes: a file with one a line, or ID<tab>NAME; imagenet: open_clip's, by number or WordNet id; "
        "the labels themselves unless given",
    )
    templates: str = Field(
        "imagenet",
        description="what is said of a class: imagenet, open_clip's 80; simple, its 7; plain, 'a photo of a {}.'; name, the "
        "name alone; or a file with a template a line",
    )
    hierarchy: str | None = Field(
        None,
        description="rank anew what a model is unsure of, by classes' children and parents: wordnet, nltk's corpus; or a file, "
        "CHILD<tab>PARENT a line",
    )
    support: list[str] = Field(
        [],
        description="labelled pictures of which a few a class help to tell the others, without training; repeatable",
    )
    shots: int = Field(
        16, gt=0, description="pictures of each class that are drawn from --support; fewer are tried, too"
    )
    column: list[str] = Field(
        [],
        description="caption columns whose descriptions of the --support pictures help, too, each by itself: syn_text_…, or "
        "captions; all that there are unless given",
    )
    batch_size: int = Field(64, gt=0, description="pictures at a time")
    dtype: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="that the models compute in")
    device: str | None = Field(None, description="cpu, cuda, …; the best there is unless given")
    num_workers: int | None = Field(None, gt=0, description="threads that decode pictures; one a core unless given")
    max_error_rate: float = Field(
        0.1, ge=0, le=1, description="share of pictures that may fail before the exit code is 3"
    )
    seed: int = Field(0, ge=0, description="of the intervals and the tests")
    overwrite: bool = Field(False, description="replace an earlier report in the folder")

    @field_validator("model")
    @classmethod
    def _given_once(cls, models: list[str]) -> list[str]:
        twice = sorted({name for name in models if models.count(name) > 1})
        if twice:
            raise ValueError(f"given twice: {', '.join(twice)}")
        return models

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.hierarchy and self.templates == "name":
            raise ValueError(
                "--hierarchy: a model is unsure where templates disagree, and --templates name is a single one"
            )
        if self.column and not self.support:
            raise ValueError("--column: is of the pictures of --support, and there are none")
        return self
