"""The options of `capsmith diversity`."""

from pathlib import Path

from pydantic import ConfigDict, Field, field_validator

from imagetext.readers.table_flags import TableFlags


class DiversityConfig(TableFlags):
    """Measure how varied and how faithful caption columns are, in one report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: list[str] = Field(
        min_length=1,
        description="captions to measure: shards, a folder, JSONL, CSV, Parquet, scenes:…, COCO results or plain "
        "text; repeatable, and several inputs are joined by key; NAME=SPEC names the captions of an input",
    )
    column: list[str] = Field(
        default=[],
        description="caption column to compare; repeatable (default: every syn_text_* column of the input)",
    )
    references: str | None = Field(
        default=None,
        description="human captions, which are measured too: a column of the input, another input that is joined by "
        "key, or none (default: the column captions, where the records have one)",
    )
    images: list[str] = Field(
        default=[],
        description="pictures for captions that come without them, joined by key, or a folder with the picture files "
        "that tables name; repeatable; none reads no pictures (default: the pictures in the input)",
    )
    embedder: str = Field(
        default="auto",
        description="model whose sentence embeddings measure meaning: minilm, a sentence-transformers name, an "
        "open_clip model, a captioner, or none; auto uses minilm where it is installed",
    )
    clip: str | None = Field(
        default=None,
        description="CLIP model for CLIPScore and self-retrieval: ViT-L-14:openai, a folder or org/name (default: no "
        "model)",
    )
    device: str | None = Field(
        default=None,
        description="device of the embedder and the CLIP model: cpu, cuda, … (default: the best device of this "
        "machine)",
    )
    semantic_pictures: int = Field(
        default=1000, gt=1, description="number of sampled pictures that the embedder and the CLIP model measure"
    )
    workers: int | None = Field(
        default=None,
        gt=0,
        description="number of processes that read and count captions, one shard at a time each (default: two for "
        "large inputs, else one)",
    )
    seed: int = Field(default=0, ge=0, description="random seed of the samples, the intervals and the tests")
    output: Path = Field(description="folder where report.json, report.md and report.html are written")

    @field_validator("column")
    @classmethod
    def _check_each_column_once(cls, column: list[str]) -> list[str]:
        repeated = sorted({name for name in column if column.count(name) > 1})
        if repeated:
            raise ValueError(f"named twice: {', '.join(repeated)}")
        return column
