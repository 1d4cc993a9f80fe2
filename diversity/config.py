"""What `capsmith diversity` takes."""

from pathlib import Path

from pydantic import ConfigDict, Field, field_validator

from imagetext.readers.table_flags import TableFlags


class DiversityConfig(TableFlags):
    """Measures of caption columns, spread beside fidelity, in one report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: list[str] = Field(
        min_length=1,
        description="captions: records in shards, a folder, JSONL, CSV, Parquet or scenes:…, "
        "COCO results, plain text; several are joined by key; NAME=… names its captions",
    )
    column: list[str] = Field(
        default=[], description="caption columns to compare; default: every syn_text_* column found"
    )
    references: str | None = Field(
        default=None,
        description="human captions, measured beside the others: a column of the input, "
        "an input of their own, joined by key, or none; default: captions, where records have any",
    )
    images: list[str] = Field(
        default=[],
        description="pictures of captions that come without, joined by key; a folder may also "
        "hold those that tables name; repeatable; none: no pictures are read",
    )
    embedder: str = Field(
        default="auto",
        description="sentence embeddings for meaning: minilm, a sentence-transformers name, an "
        "open_clip model or a captioner; auto: minilm where it is installed; none",
    )
    clip: str | None = Field(
        default=None, description="CLIP model for CLIPScore and self-retrieval: ViT-L-14:openai, a folder, org/name"
    )
    device: str | None = Field(
        default=None, description="of the embedder and the CLIP model: cpu, cuda, …; the best there is unless given"
    )
    semantic_pictures: int = Field(default=1000, gt=1, description="pictures of the sample that are embedded")
    workers: int = Field(default=1, gt=0, description="processes that read and count, a shard at a time")
    seed: int = Field(default=0, ge=0, description="of the samples, the intervals and the tests")
    output: Path = Field(description="folder for report.json, report.md and report.html")

    @field_validator("column")
    @classmethod
    def _named_once(cls, column: list[str]) -> list[str]:
        twice = sorted({name for name in column if column.count(name) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        return column
