"""The configuration of `capsmith reinforce`; imports no torch, so that --help is quick."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from generate.runs.config import RunConfig
from imagetext.readers.table_flags import TableFlags
from imagetext.sets.room import check_pattern


class ReinforceConfig(RunConfig, TableFlags):
    """Add views of the pictures and teachers' embeddings to captioned records. The same command again resumes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: list[str] = Field(
        min_length=1, description="records with synthetic captions: shards, JSONL, Parquet; repeatable"
    )
    teacher: list[str] = Field(
        [],
        description="a CLIP model: coca_tiny, open_clip's ARCHITECTURE:TAG or ARCHITECTURE:FILE, "
        "a folder, org/name; repeatable, embeddings are joined in this order",
    )
    views: int = Field(30, gt=0, description="augmented views of each picture")
    size: int | None = Field(None, gt=0, description="side of a view in pixels; the largest teacher's unless given")
    crop_area: float = Field(0.08, gt=0, le=1, description="least share of a picture's area that a view shows")
    columns: Annotated[str, AfterValidator(check_pattern)] = Field(
        "^syn_text", description="regular expression that the names of the caption columns to embed start with"
    )
    embeddings: Literal["npz", "pth.gz", "none"] = Field(
        "npz",
        description="npz in float32, pth.gz in bfloat16, or none: only views, for teachers run beside the student",
    )
    convert: bool = Field(
        False,
        description="put records that are reinforced already, in the older layout, into the newer one; "
        "no teacher is needed",
    )
    seed: int = Field(0, ge=0, lt=2**64, description="of the views, with each record's key")
    dtype: Literal["fp32", "bf16", "fp16"] | None = Field(
        None, description="that the teachers compute in; chosen once for a run unless given: bf16 on a GPU, else fp32"
    )
    batch_size: int | None = Field(
        None, gt=0, description="views or texts at a time; chosen once for a run unless given"
    )
    text_from_synthetic: bool = Field(
        False, description="the first synthetic caption as `txt`, not the first original"
    )
    max_error_rate: float = Field(
        0.1, ge=0, le=1, description="share of records that may fail before the exit code is 3"
    )
    report: bool = Field(
        False,
        description="once all is done, how well each teacher and all together find captions and pictures "
        "again, and which logit scale fits: a table, and report.json",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = self.engine_problems()
        unused = "--embeddings none" if self.embeddings == "none" else "--convert" if self.convert else ""
        if not self.teacher and not unused:
            problems.append("--teacher: required, but with --convert or --embeddings none")
        if self.teacher and unused:
            problems.append(f"--teacher: {', '.join(self.teacher)}: not used with {unused}")
        if self.report and not self.teacher:
            problems.append(f"--report: is of teachers, and there are none with {unused or 'no --teacher'}")
        if self.convert and self.embeddings == "none":
            problems.append("--embeddings: none leaves nothing to --convert")
        twice = sorted({name for name in self.teacher if self.teacher.count(name) > 1})
        problems += [f"--teacher: {name} given twice" for name in twice]
        if problems:
            raise ValueError("; ".join(problems))
        return self
