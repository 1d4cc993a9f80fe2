"""The configuration of `capsmith generate`; imports no torch, so that --help is quick."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from captioners.base import SamplingConfig
from imagetext.shards import check_column


class GenerateConfig(SamplingConfig):
    """Caption pictures, several captions each, into records. The same command again resumes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: list[str] = Field(min_length=1, description="pictures: shards, folder, CSV, JSONL, Parquet, caption set or scenes:…; repeatable")
    images: Path | None = Field(None, description="folder that the pictures' paths in tables and caption sets start from")
    model: str = Field(description="the captioner: coca_tiny, an open_clip architecture, a folder or file, org/name")
    output: Path = Field(description="folder for the records, one file per input shard")
    pretrained: str | None = Field(None, description="weights of an open_clip architecture: a tag or a file")
    column: Annotated[str, AfterValidator(check_column)] | None = Field(
        None, description="the captions' column; syn_text_ and the captioner's name unless given")
    format: Literal["webdataset", "jsonl", "parquet"] = Field("webdataset", description="of the records")
    text_from_synthetic: bool = Field(False, description="the first synthetic caption as `txt`, not the first original")
    similarity: bool = Field(False, description="score each caption by its CoCa similarity with the picture: one more text pass")
    batch_size: int | None = Field(None, gt=0, description="pictures in flight at a time; chosen once for a run unless given")
    dtype: Literal["fp32", "bf16", "fp16"] | None = Field(
        None, description="of the captioner; chosen once for a run unless given: bf16 on a GPU, else fp32")
    device: str | None = Field(None, description="cpu, cuda, …; the best there is unless given")
    num_workers: int = Field(2, ge=0, description="processes that decode pictures; 0: none but the main one")
    max_error_rate: float = Field(0.1, ge=0, le=1, description="share of pictures that may fail before the exit code is 3")
    overwrite: bool = Field(False, description="start anew in a folder that holds an earlier run")

    @property
    def sampling(self) -> SamplingConfig:
        """How captions are drawn."""
        return SamplingConfig(**self.model_dump(include=set(SamplingConfig.model_fields)))
