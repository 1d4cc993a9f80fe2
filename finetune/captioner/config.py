"""The configuration of `capsmith finetune`; imports no torch, so that --help is quick."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from finetune.captioner.recipes import RECIPES, check_recipe, read_recipe
from finetune.config import TrainingConfig, check_held_out, parse_count
from imagetext.shards import check_column


def _check_name(name: str) -> str:
    check_column(f"syn_text_{name}")
    return name


class FinetuneConfig(TrainingConfig):
    """Fine-tune a captioner on captioned pictures."""

    command: ClassVar[str] = "finetune"

    recipe: Annotated[str, AfterValidator(check_recipe)] | None = Field(
        default=None,
        description="a captioner of the paper, whose settings all flags override; `finetune --list-recipes` lists them",
    )
    input: list[str] = Field(
        min_length=1, description="captioned pictures: shards, folder, CSV, JSONL, Parquet, caption set or scenes:…"
    )
    weights: list[Annotated[float, Field(gt=0)]] = Field(
        default=[],
        description="of a mix, one for each input: how often its pictures come in a pass, where those of weight 1 come once",
    )
    eval_input: list[str] = Field(
        default=[], description="held-out pictures to validate on; a few of the input unless given"
    )
    model: str = Field(
        description="captioner to start from: coca_tiny, an open_clip architecture, a folder or file, org/name"
    )
    output: Path = Field(description="folder for the fine-tuned captioner, its log and its checkpoint")
    pretrained: str | None = Field(default=None, description="weights of an open_clip architecture: a tag or a file")
    from_scratch: bool = Field(
        default=False, description="start from random weights; without it a model with no weights is an error"
    )
    context: int | None = Field(
        default=None,
        gt=2,
        description="positions, the CLS token's too: 77, 128, 256; a shorter model is extended; none: the model's",
    )
    image_size: int | None = Field(
        default=None,
        gt=0,
        description="pixels of a picture's side; positions of a CoCa's weights are interpolated; none: the model's",
    )
    name: Annotated[str, AfterValidator(_check_name)] | None = Field(
        default=None, description="the captioner's name, which names its column: syn_text_NAME"
    )
    long_captions: Literal["sentence", "word", "token"] = Field(
        default="sentence",
        description="of captions over the context: whole sentences, drawn anew each time; the first words; or tokens",
    )
    samples_seen: Annotated[int, BeforeValidator(parse_count)] = Field(
        default=12_000_000, gt=0, description="budget in captions seen, e.g. 12M; a smaller set is repeated"
    )
    batch_size: int = Field(default=128, gt=0, description="pictures a step, over all devices")
    device_batch_size: int | None = Field(
        default=None,
        gt=0,
        description="pictures a device takes at a time; a step accumulates, exactly; unless given, its whole share",
    )
    captions_per_image: int = Field(
        default=1, gt=0, description="captions of a picture in a step; the picture is encoded once for them"
    )
    learning_rate: float = Field(default=1e-5, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(default=0.1, ge=0, description="of matrices; norms, biases and embeddings have none")
    caption_weight: float = Field(default=2.0, ge=0, description="weight of the caption loss")
    contrastive_weight: float = Field(default=1.0, ge=0, description="weight of the contrastive loss")
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="a block's learning rate, as a share of that of the block above it"
    )
    freeze_image: bool = Field(
        default=False, description="leave the image tower as it is; what it says of each picture is kept on disk"
    )
    lora_rank: int = Field(
        default=0, ge=0, description="train adapters of this rank instead of the weights; 0: the weights"
    )
    lora_alpha: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="adapters count alpha / rank times; twice the rank unless given",
    )
    lora_dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="of what comes into adapters; 0.05 of vision-language models and 0 of CoCa unless given",
    )
    lora_targets: list[Annotated[str, Field(pattern=r"^[\w.]+$")]] = Field(
        default=[],
        description="layers of the language model that get adapters, such as q_proj; all unless given; of CoCa, c_fc and c_proj",
    )
    lora_merge: bool = Field(
        default=False, description="write a whole model, adapters merged, as CoCa always does; else the adapters alone"
    )
    base: str | None = Field(
        default=None, description="the model under --model's adapters, where it lies on this machine: its folder"
    )
    four_bit: bool = Field(
        default=False,
        description="hold the weights under the adapters of a vision-language model in 4 bits (QLoRA); needs bitsandbytes",
    )
    hold_out: int = Field(
        default=500, ge=0, description="pictures of the input to validate on, at most a twentieth; 0: no validation"
    )
    validate_every: Annotated[int, BeforeValidator(parse_count)] | None = Field(
        default=None,
        gt=0,
        description="captions seen between validations, e.g. 500k; 1M, or an eighth of a smaller budget, unless "
        "given; there is one before the first step and one at the end, too",
    )
    shard: bool = Field(
        default=False,
        description="each process holds a part of all weights, gradients and optimizer state (FSDP), for large models",
    )
    num_workers: int | None = Field(
        default=None,
        ge=0,
        description="processes that decode pictures, for each process that trains; unless given, its share of the cores for "
        "a GPU, and one for a CPU",
    )
    max_error_rate: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of the captioned pictures that may be broken or missing; more stop the run before it trains",
    )
    push_to_hub: str | None = Field(
        default=None,
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="org/name of a hub repository to upload the finished captioner to, and its card",
    )
    hub_public: bool = Field(
        default=False, description="a hub repository that is made for --push-to-hub is public, not private"
    )
    seed: int = Field(
        default=0, ge=0, description="of the order of pictures, the choice of captions and random weights"
    )

    @model_validator(mode="before")
    @classmethod
    def _begin_with_the_recipe(cls, given: Any) -> Any:
        """The recipe's settings, below all that is given."""
        name = given.get("recipe") if isinstance(given, dict) else None
        return read_recipe(name).settings | given if name in RECIPES else given

    # Fields are checked in their order, each with those before it: so one pass finds every problem.

    @field_validator("four_bit")
    @classmethod
    def _is_under_adapters(cls, four_bit: bool, info: ValidationInfo) -> bool:
        if four_bit and not info.data.get("lora_rank", 1):
            raise ValueError("weights in 4 bits do not learn: say --lora-rank, too")
        if four_bit and info.data.get("lora_merge"):
            raise ValueError("weights in 4 bits are not merged with adapters: leave --lora-merge out")
        return four_bit

    @field_validator("lora_alpha", "lora_dropout", "lora_targets")
    @classmethod
    def _is_of_new_adapters(cls, value: Any, info: ValidationInfo) -> Any:
        if value not in (None, []) and not info.data.get("lora_rank", 1):
            raise ValueError("is of adapters: say --lora-rank, too")
        return value

    @field_validator("shard")
    @classmethod
    def _has_what_can_be_sharded(cls, shard: bool, info: ValidationInfo) -> bool:
        problems = ["weights in 4 bits are not sharded"] if info.data.get("four_bit") else []
        problems += ["fp16 is not, bf16 is"] if info.data.get("dtype") == "fp16" else []
        if shard and problems:
            raise ValueError("; ".join(problems))
        return shard

    @field_validator("eval_input")
    @classmethod
    def _is_not_the_input(cls, specs: list[str], info: ValidationInfo) -> list[str]:
        return check_held_out(specs, info.data.get("input", []))

    @field_validator("input")
    @classmethod
    def _is_the_recipes(cls, specs: list[str], info: ValidationInfo) -> list[str]:
        if info.data.get("recipe"):
            read_recipe(info.data["recipe"]).check_input(specs)
        return specs
