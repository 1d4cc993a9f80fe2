"""The configuration of `capsmith select`; imports no torch, so that --help is quick."""

from functools import lru_cache
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_settings import CliSuppress

from generate.captions.templates import Expression
from generate.runs.config import RunConfig
from imagetext.columns import is_column
from imagetext.readers.table_flags import TableFlags

ORIGINALS = "text"  # what stands for the original captions among columns

expression_of = lru_cache(32)(
    Expression
)  # a configuration travels between processes, and what it is made into does not


def _check_expression(source: str) -> str:
    expression_of(source)
    return source


def _check_column(name: str) -> str:
    if name != ORIGINALS and not is_column(name):
        raise ValueError(f"is neither the name of a column of captions nor {ORIGINALS}, the original ones")
    return name


Source = Annotated[str, AfterValidator(_check_expression)]


class SelectConfig(RunConfig, TableFlags):
    """Choose captions and records by their scores, into a smaller set. The same command again resumes.

    A caption stays if it passes all that is asked for, and a record if one of its captions does; all other records are listed in
    rejected.jsonl, each with its reason. Expressions are Jinja's, over each score of a caption (similarity, logprob, truncated, flags,
    …), and text, column, label, key and the record's other fields as json.x.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: list[str] = Field(
        min_length=1, description="captioned or reinforced records: shards, folder, JSONL, Parquet; repeatable"
    )
    where: Source | None = Field(
        None, description="what a caption must be, an expression: 'similarity >= 0.25 and not flags'"
    )
    top: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the records of the input that stay at most, those with the greatest --by",
    )
    by: Source = Field(
        "similarity", description="a caption's worth, an expression that is a number; 0: chance decides"
    )
    max_per_caption: int | None = Field(
        None,
        gt=0,
        description="records at most for which captions of the same words may stand, those with the greatest --by",
    )
    max_per_class: int | None = Field(
        None, gt=0, description="records of one class that may stay at most, those with the greatest --by"
    )
    column: list[Annotated[str, AfterValidator(_check_column)]] = Field(
        [],
        description="column whose captions are judged, or text, the original captions; repeatable; all of synthetic captions unless "
        "given; other columns stay as they are",
    )
    label: str | None = Field(
        None,
        min_length=1,
        description="where each picture's class stands: folder, the folder that it lies in; cls, webdataset's; or a field or "
        "column; the label that capsmith generate wrote unless given",
    )
    class_names: str | None = Field(
        None,
        description="names of the classes: a file with one a line, or ID<tab>NAME; imagenet: open_clip's, by number",
    )
    text_from_synthetic: bool = Field(
        False, description="the first synthetic caption as `txt`, not the first original"
    )
    dry_run: bool = Field(
        False, description="write no records, but dry_run.html: how --by is spread, and what would stay, in numbers"
    )
    max_error_rate: float = Field(
        0.1, ge=0, le=1, description="share of the records that may be unusable before the exit code is 3"
    )
    # No model computes anything here, and what was settled over the whole set is settled once.
    device: CliSuppress[Literal["cpu"]] = Field("cpu", description="not used")
    num_workers: CliSuppress[Literal[0]] = Field(0, description="not used")
    gpus_per_worker: CliSuppress[Literal[0]] = Field(0, description="not used")
    retry_failed: CliSuppress[Literal[False]] = Field(False, description="not used")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = self.engine_problems()
        if self.where is None and not self.settles and not self.dry_run:
            problems.append("--where, --top, --max-per-caption, --max-per-class: none is given, and all would stay")
        if "by" in self.model_fields_set and not self.settles and not self.dry_run:
            problems.append("--by: is for --top, --max-per-caption and --max-per-class")
        if self.class_names and not self.label:
            problems.append("--class-names: are of the classes that --label finds, and it is not given")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def settles(self) -> bool:
        """Whether anything is to be settled over the whole set."""
        return bool(self.top or self.max_per_caption or self.max_per_class)

    @property
    def needs_class(self) -> bool:
        """Whether records are asked for their classes."""
        return bool(self.max_per_class) or any("label" in one.needed for one in self.expressions.values())

    @property
    def expressions(self) -> dict[str, Expression]:
        """Those that are used, by the name of their field."""
        by = {"by": expression_of(self.by)} if self.settles or self.dry_run else {}
        return ({"where": expression_of(self.where)} if self.where else {}) | by
