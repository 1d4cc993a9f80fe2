"""The settings that all trainings have in common. This file imports no torch, so that --help is quick."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field

from imagetext.readers.table_flags import TableFlags


def parse_count(value: object) -> object:
    """Return the number that "12M", "300k" or "2B" means; pydantic checks any other value, which is returned as is."""
    if isinstance(value, str) and value[-1:] in ("k", "M", "B"):
        try:
            return round(float(value[:-1]) * {"k": 1e3, "M": 1e6, "B": 1e9}[value[-1]])
        except ValueError:
            return value
    return value


def check_held_out(specs: list[str], trained_on: list[str]) -> list[str]:
    """Return the inputs of held-out pictures; raises ValueError if one of them is trained on, too."""
    if both := [spec for spec in specs if spec in trained_on]:
        raise ValueError(f"{', '.join(both)} is also named by --input, and pictures to validate on are not trained on")
    return specs


class TrainingConfig(TableFlags):
    """The settings of any training, of a captioner or a student."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    command: ClassVar[str]  # the capsmith command that takes these settings

    warmup: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="share of the training steps, at the start, in which the learning rate rises from 0 to its peak",
    )
    clip_grad_norm: float = Field(
        default=1.0, gt=0, description="largest gradient norm; larger gradients are scaled down to it"
    )
    ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of an exponential moving average of the weights; the average is validated and written "
        "instead of the last weights; 0: no average",
    )
    grad_checkpointing: bool = Field(
        default=False,
        description="compute activations again in the backward pass instead of storing them: less memory, slower",
    )
    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="number format of the computation; bf16 and fp16 train in mixed precision"
    )
    tf32: bool = Field(
        default=False,
        description="let a GPU multiply float32 matrices in TF32: several times faster, exact to about three digits",
    )
    device: str | None = Field(
        default=None, description="device to train on: cpu, cuda, … (default: the best device of this machine)"
    )
    num_processes: int | None = Field(
        default=None,
        gt=0,
        description="number of processes to train in, one device each (default: as many as the launcher has started, "
        "or one)",
    )
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default=[], description="experiment trackers that also receive the log; repeatable"
    )
    checkpoint_every: int = Field(default=1000, gt=0, description="number of steps between checkpoints")
    overwrite: bool = Field(
        default=False, description="replace an earlier run in the --output folder instead of resuming it"
    )

    if TYPE_CHECKING:
        # Each kind of training also has the following fields, with its own descriptions and defaults. They are not
        # declared here because pydantic checks fields in the order of their declaration, which differs between kinds.
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
        # A captioner's user can choose the following; for a student they are constants.
        captions_per_image: int
        layer_decay: float
        shard: bool


Config = TypeVar("Config", bound=TrainingConfig)
