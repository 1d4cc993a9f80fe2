"""What the configurations of all trainings have in common; imports no torch, so that --help is quick."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field

from imagetext.readers.table_flags import TableFlags


def parse_count(value: object) -> object:
    """Read "12M", "300k" or "1_000" as a number; anything else is left for pydantic to judge."""
    if isinstance(value, str) and value[-1:] in ("k", "M", "B"):
        try:
            return round(float(value[:-1]) * {"k": 1e3, "M": 1e6, "B": 1e9}[value[-1]])
        except ValueError:
            return value
    return value


def check_held_out(specs: list[str], trained_on: list[str]) -> list[str]:
    """The specs of held-out pictures; ValueError for one that is trained on."""
    if both := [spec for spec in specs if spec in trained_on]:
        raise ValueError(f"{', '.join(both)} is --input, too, and held-out pictures are not trained on")
    return specs


class TrainingConfig(TableFlags):
    """A training of a captioner or a student."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    command: ClassVar[str]  # that trains so

    warmup: float = Field(
        default=0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises"
    )
    clip_grad_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this norm")
    ema: float = Field(
        default=0.0, ge=0, lt=1, description="decay of an average of the weights, which is what is written; 0: none"
    )
    grad_checkpointing: bool = Field(
        default=False, description="compute activations twice instead of keeping them: less memory, slower"
    )
    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="bf16 and fp16 train in mixed precision"
    )
    tf32: bool = Field(
        default=False, description="float32 products by a GPU in TF32: several times as fast, to three digits"
    )
    device: str | None = Field(default=None, description="cpu, cuda, …; the best there is unless given")
    num_processes: int | None = Field(
        default=None, gt=0, description="processes to train in, a device each; those of the launcher unless given"
    )
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default=[], description="trackers to send the log to, too"
    )
    checkpoint_every: int = Field(default=1000, gt=0, description="steps between checkpoints")
    overwrite: bool = Field(default=False, description="start anew in a folder that holds an earlier run")

    if TYPE_CHECKING:
        # Each kind of training has these, too, with words, defaults and a place of its own: fields are checked in their order.
        input: list[str]
        eval_input: list[str]
        output: Path
        pretrained: str | None
        samples_seen: int
        batch_size: int
        device_batch_size: int | None
        learning_rate: float
        weight_decay: float
        validate_every: int | None
        num_workers: int | None
        max_error_rate: float
        seed: int
        # Settings of captioners; a student's are fixed.
        captions_per_image: int
        layer_decay: float
        shard: bool


Config = TypeVar("Config", bound=TrainingConfig)
