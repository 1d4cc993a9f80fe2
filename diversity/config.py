"""What `capsmith diversity` takes."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator


class DiversityConfig(BaseModel):
    """Measures of caption columns, in one report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: list[str] = Field(min_length=1, description="records with captions: shards, a folder, JSONL, CSV, Parquet or "
                             "scenes:…; several are joined by key")
    column: list[str] = Field(default=[], description="caption columns to compare; default: every syn_text_* column found")
    references: str | None = Field(default=None, description="column of human captions, measured beside the others; "
                                   "default: captions, where records have any")
    output: Path = Field(description="folder for report.json and report.html")

    @field_validator("column")
    @classmethod
    def _named_once(cls, column: list[str]) -> list[str]:
        twice = sorted({name for name in column if column.count(name) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        return column
