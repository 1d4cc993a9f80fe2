"""The configuration of `capsmith reinforce`. This module imports no torch, so that --help is quick."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from generate.runs.config import RunConfig
from imagetext.readers.table_flags import TableFlags
from imagetext.sets.room import check_pattern


class ReinforceConfig(RunConfig, TableFlags):
    """Add augmented views of the pictures, and teachers' embeddings of views and captions, to captioned records.

    Teachers are CLIP models. The same command again resumes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: list[str] = Field(
        min_length=1, description="records with synthetic captions: shards, JSONL, Parquet; repeatable"
    )
    teacher: list[str] = Field(
        [],
        description="CLIP model whose embeddings are added: coca_tiny, ARCHITECTURE:TAG or ARCHITECTURE:FILE of "
        "open_clip, a folder, or org/name; repeatable, the embeddings of several teachers are joined in this order",
    )
    views: int = Field(30, gt=0, description="augmented views to draw of each picture")
    size: int | None = Field(
        None, gt=0, description="side of a view in pixels (default: the largest that a teacher takes)"
    )
    crop_area: float = Field(0.08, gt=0, le=1, description="smallest share of a picture's area that a view shows")
    columns: Annotated[str, AfterValidator(check_pattern)] = Field(
        "^syn_text", description="caption columns to embed: a regular expression for the beginning of their names"
    )
    embeddings: Literal["npz", "pth.gz", "none"] = Field(
        "npz",
        description="file format of the embeddings: npz (float32), pth.gz (bfloat16), or none, to write only views "
        "for training with the teachers beside the student",
    )
    convert: bool = Field(
        False,
        description="convert records that are already reinforced, from the older layout of embeddings to the newer "
        "one; needs no teacher",
    )
    seed: int = Field(0, ge=0, lt=2**64, description="random seed for the views, used with each record's key")
    dtype: Literal["fp32", "bf16", "fp16"] | None = Field(
        None, description="number type that the teachers compute in (default: bf16 on a GPU, else fp32)"
    )
    batch_size: int | None = Field(
        None, gt=0, description="views or texts that a teacher embeds at a time (default: 256 on a GPU, else 32)"
    )
    text_from_synthetic: bool = Field(
        False, description="write the first synthetic caption as `txt`, instead of the first original caption"
    )
    max_error_rate: float = Field(
        0.1, ge=0, le=1, description="share of records that may fail; if more fail, the exit code is 3"
    )
    report: bool = Field(
        False,
        description="when all is done, measure how well each teacher and all together match captions and pictures, "
        "and which logit scale fits; print a table and write report.json",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = self.engine_problems()
        unused = "--embeddings none" if self.embeddings == "none" else "--convert" if self.convert else ""
        if not self.teacher and not unused:
            problems.append("--teacher: required, except with --convert or --embeddings none")
        if self.teacher and unused:
            problems.append(f"--teacher: {', '.join(self.teacher)}: not used with {unused}")
        if self.report and not self.teacher:
            problems.append(f"--report: needs teachers, and there are none with {unused or 'no --teacher'}")
        problems += [
            f"--{name.replace('_', '-')}: {value}: has no effect with --convert, which keeps the views that are there"
            for name in ("views", "crop_area", "seed")
            if self.convert and (value := getattr(self, name)) != type(self).model_fields[name].default
        ]
        if self.convert and self.embeddings == "none":
            problems.append("--embeddings: none leaves nothing to --convert")
        repeated = sorted({name for name in self.teacher if self.teacher.count(name) > 1})
        problems += [f"--teacher: {name} given twice" for name in repeated]
        if problems:
            raise ValueError("; ".join(problems))
        return self
