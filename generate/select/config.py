"""The configuration of `capsmith select`. This module imports no torch, so that --help is quick."""

from functools import lru_cache
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_settings import CliSuppress

from generate.captions.templates import Expression
from generate.runs.config import RunConfig
from imagetext.columns import is_column
from imagetext.readers.table_flags import TableFlags

ORIGINALS = "text"  # the name of the original captions among the columns

# A configuration holds the text of an expression, because it is sent to other processes; this parses the text.
expression_of = lru_cache(32)(Expression)


def _check_expression(source: str) -> str:
    expression_of(source)
    return source


def _check_column(name: str) -> str:
    if name != ORIGINALS and not is_column(name):
        raise ValueError(f"is neither the name of a column of captions nor {ORIGINALS}, the original ones")
    return name


Source = Annotated[str, AfterValidator(_check_expression)]


class SelectConfig(RunConfig, TableFlags):
    """Choose captions and records by their scores, and write a smaller set. The same command again resumes.

    A caption is kept if it passes all conditions, and a record if at least one of its captions is kept. All other
    records are listed in rejected.jsonl, each with the reason. Conditions are Jinja expressions over the scores of a
    caption (similarity, logprob, truncated, flags, …), and over text, column, label, key, and the record's other
    fields as json.x.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: list[str] = Field(
        min_length=1,
        description="captioned or reinforced records to choose from: shards, folder, JSONL, Parquet; repeatable",
    )
    where: Source | None = Field(
        None, description="condition that a caption must meet, such as 'similarity >= 0.25 and not flags'"
    )
    top: float | None = Field(
        None,
        gt=0,
        le=1,
        description="keep at most this share of the input's records: those whose best caption has the greatest --by",
    )
    by: Source = Field(
        "similarity", description="value by which captions are ranked, a numeric expression; 0 to rank at random"
    )
    max_per_caption: int | None = Field(
        None,
        gt=0,
        description="keep captions with the same words in at most this many records: those with the greatest --by",
    )
    max_per_class: int | None = Field(
        None, gt=0, description="keep at most this many records of one class: those with the greatest --by"
    )
    column: list[Annotated[str, AfterValidator(_check_column)]] = Field(
        [],
        description="column whose captions are judged, or text for the original captions; repeatable; other columns "
        "stay as they are (default: all columns of synthetic captions)",
    )
    label: str | None = Field(
        None,
        min_length=1,
        description="where each picture's class is read from: folder (the name of the picture's folder), cls "
        "(webdataset's member), or the name of a field or table column (default: what capsmith generate wrote)",
    )
    class_names: str | None = Field(
        None,
        description="names of the classes: a file with one name or ID<tab>NAME in a line; or imagenet, for "
        "open_clip's names by class number",
    )
    text_from_synthetic: bool = Field(
        False, description="write the first synthetic caption as `txt`, instead of the first original caption"
    )
    dry_run: bool = Field(
        False,
        description="write no records, only dry_run.html: the distribution of --by and how many records would be kept",
    )
    max_error_rate: float = Field(
        0.1, ge=0, le=1, description="share of records that may be unusable; if more are, the exit code is 3"
    )
    # Not used, because no model runs here, and what is settled over the whole set is settled once.
    device: CliSuppress[Literal["cpu"]] = Field("cpu", description="not used")
    num_workers: CliSuppress[Literal[0]] = Field(0, description="not used")
    gpus_per_worker: CliSuppress[Literal[0]] = Field(0, description="not used")
    retry_failed: CliSuppress[Literal[False]] = Field(False, description="not used")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = self.engine_problems()
        if self.where is None and not self.settles and not self.dry_run:
            problems.append(
                "--where, --top, --max-per-caption, --max-per-class: none is given, so all records would be kept"
            )
        if "by" in self.model_fields_set and not self.settles and not self.dry_run:
            problems.append("--by: is for --top, --max-per-caption and --max-per-class")
        if self.text_from_synthetic and self.format != "webdataset":
            problems.append(f"--text-from-synthetic: writes `txt`, which records in {self.format} do not have")
        if self.class_names and not self.label:
            problems.append("--class-names: needs --label, which says where the classes are")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def settles(self) -> bool:
        """Whether something has to be settled over the whole set: a threshold, or limits."""
        return bool(self.top or self.max_per_caption or self.max_per_class)

    @property
    def needs_class(self) -> bool:
        """Whether records need a class."""
        return bool(self.max_per_class) or any(
            "label" in expression.needed for expression in self.expressions.values()
        )

    @property
    def expressions(self) -> dict[str, Expression]:
        """The expressions that are used, by the name of their field: `where`, `by`."""
        expressions = {}
        if self.where:
            expressions["where"] = expression_of(self.where)
        if self.settles or self.dry_run:
            expressions["by"] = expression_of(self.by)
        return expressions
