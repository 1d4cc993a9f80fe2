"""The settings of `capsmith finetune`. This file imports no torch, so that --help is quick."""

import re
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
from imagetext.columns import check_column
from imagetext.configurations import check_hub_name


def _check_name(name: str) -> str:
    check_column(f"syn_text_{name}")
    return name


def _check_layer(name: str) -> str:
    if not re.fullmatch(r"[\w.]+", name):
        raise ValueError("is not the name of a layer; give each name its own --lora-targets")
    return name


class FinetuneConfig(TrainingConfig):
    """Fine-tune a captioner on captioned pictures."""

    command: ClassVar[str] = "finetune"

    recipe: Annotated[str, AfterValidator(check_recipe)] | None = Field(
        default=None,
        description="one of the paper's captioners, as a set of settings that your other flags override; "
        "`capsmith finetune --list-recipes` lists them",
    )
    input: list[str] = Field(
        min_length=1,
        description="captioned pictures to train on: shards, a folder, CSV, JSONL, Parquet, a caption set or "
        "scenes:…; repeatable",
    )
    weights: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default=[],
        description="one weight for each --input, in the same order: how often its pictures come in one pass "
        "(default: 1 for every input, so each picture comes once); repeatable",
    )
    eval_input: list[str] = Field(
        default=[],
        description="captioned pictures to validate on; they are not trained on (default: some pictures of --input, "
        "see --hold-out); repeatable",
    )
    model: str = Field(
        description="captioner to start from: coca_tiny, an open_clip architecture, a folder or file, or org/name on "
        "the Hub"
    )
    output: Path = Field(description="folder for the fine-tuned captioner, its logs and its checkpoints")
    pretrained: str | None = Field(
        default=None, description="weights for an open_clip architecture: a tag of open_clip or a file"
    )
    from_scratch: bool = Field(
        default=False, description="start from random weights; without this flag, a model without weights is an error"
    )
    context: int | None = Field(
        default=None,
        gt=2,
        description="context length in tokens, including the CLS token: 77, 128 or 256, for example; a model with a "
        "shorter context is extended; only for CoCa (default: the model's)",
    )
    image_size: int | None = Field(
        default=None,
        gt=0,
        description="side of a picture in pixels; the position embeddings are interpolated; only for CoCa (default: "
        "the model's)",
    )
    name: Annotated[str, AfterValidator(_check_name)] | None = Field(
        default=None,
        description="name of the fine-tuned captioner; its captions go into the column syn_text_NAME (default: the "
        "name of --model)",
    )
    long_captions: Literal["sentence", "word", "token"] = Field(
        default="sentence",
        description="how captions longer than the context are shortened. sentence: to whole sentences, chosen anew "
        "each time; word: to the first words; token: to the first tokens",
    )
    samples_seen: Annotated[int, BeforeValidator(parse_count)] = Field(
        default=12_000_000,
        gt=0,
        description="length of the training in captions, e.g. 12M; a smaller set is repeated",
    )
    batch_size: int = Field(default=128, gt=0, description="number of pictures in a step, over all devices together")
    device_batch_size: int | None = Field(
        default=None,
        gt=0,
        description="number of pictures that a device processes at a time; a smaller number saves memory and does not "
        "change the result, because gradients are accumulated (default: all of its pictures of a step)",
    )
    captions_per_image: int = Field(
        default=1,
        gt=0,
        description="number of captions of each picture in a step; the picture is encoded once for all of them",
    )
    learning_rate: float = Field(default=1e-5, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(
        default=0.1, ge=0, description="weight decay of matrices; norms, biases and embeddings are not decayed"
    )
    caption_weight: float = Field(default=2.0, ge=0, description="weight of the caption loss")
    contrastive_weight: float = Field(default=1.0, ge=0, description="weight of the contrastive loss; only for CoCa")
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="factor by which the learning rate shrinks from each block to the block below it; 1: all blocks "
        "learn at the same rate; only for CoCa",
    )
    freeze_image: bool = Field(
        default=False,
        description="do not train the image tower; CoCa's outputs for each picture are then computed once and stored "
        "on disk during the run",
    )
    lora_rank: int = Field(
        default=0, ge=0, description="train LoRA adapters of this rank instead of the weights; 0: train the weights"
    )
    lora_alpha: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="scale of the adapters: their output is multiplied by alpha / rank (default: twice the rank)",
    )
    lora_dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="dropout on the adapters' input (default: 0.05 for vision-language models, 0 for CoCa)",
    )
    lora_targets: list[Annotated[str, AfterValidator(_check_layer)]] = Field(
        default=[],
        description="names of the layers that get adapters, such as q_proj; repeatable (default: all linear layers of "
        "the language model; for CoCa, c_fc and c_proj)",
    )
    lora_merge: bool = Field(
        default=False,
        description="write a whole model with the adapters merged into it, instead of the adapters alone; CoCa is "
        "always written so",
    )
    base: str | None = Field(
        default=None,
        description="folder of the base model, if --model is a folder of adapters and their base model lies elsewhere "
        "on this machine",
    )
    four_bit: bool = Field(
        default=False,
        description="load the frozen weights of a vision-language model in 4 bits (QLoRA); needs --lora-rank and "
        "bitsandbytes",
    )
    hold_out: int = Field(
        default=500,
        ge=0,
        description="number of pictures to validate on. Without --eval-input they are held out of --input, at most a "
        "twentieth of it (0: no validation); with --eval-input, at most this many of its pictures are used (0: all)",
    )
    validate_every: Annotated[int, BeforeValidator(parse_count)] | None = Field(
        default=None,
        gt=0,
        description="number of captions between validations, e.g. 500k (default: 1M, or an eighth of --samples-seen "
        "if that is less); there is also one before the first step and one at the end",
    )
    shard: bool = Field(
        default=False,
        description="for large models: split weights, gradients and optimizer state among the processes (FSDP)",
    )
    products: Literal["torch", "onednn"] | None = Field(
        default=None,
        description="library of a CoCa's float32 matrix products on a CPU: torch (torch's own, usually MKL) or onednn "
        "(default: the faster one, measured once on a machine and chosen once for a run)",
    )
    num_workers: int | None = Field(
        default=None,
        ge=0,
        description="number of processes that decode pictures, for each training process (default: its share of the "
        "CPU cores when training on a GPU, 1 when training on a CPU)",
    )
    max_error_rate: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="largest share of the captioned pictures that may be broken or missing; if there are more, the "
        "run stops before it trains",
    )
    push_to_hub: Annotated[str, AfterValidator(check_hub_name)] | None = Field(
        default=None,
        description="Hugging Face repository, as org/name, to which the finished captioner and its card are uploaded",
    )
    hub_public: bool = Field(
        default=False, description="if --push-to-hub has to create the repository, make it public instead of private"
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="seed of the order of the pictures, the choice of captions and of random weights",
    )

    @model_validator(mode="before")
    @classmethod
    def _add_recipe_settings(cls, settings: Any) -> Any:
        """Add the recipe's settings to those of the user, which take precedence."""
        name = settings.get("recipe") if isinstance(settings, dict) else None
        return read_recipe(name).settings | settings if name in RECIPES else settings

    # Pydantic checks fields in the order of their declaration, and a validator sees the fields before its own. So each
    # conflict is checked at the later of its two fields, and one pass reports every problem.

    @field_validator("four_bit")
    @classmethod
    def _check_four_bit(cls, four_bit: bool, info: ValidationInfo) -> bool:
        if four_bit and not info.data.get("lora_rank", 1):
            raise ValueError("weights in 4 bits cannot be trained: add --lora-rank")
        if four_bit and info.data.get("lora_merge"):
            raise ValueError("adapters cannot be merged into weights in 4 bits: leave --lora-merge out")
        return four_bit

    @field_validator("lora_alpha", "lora_dropout", "lora_targets")
    @classmethod
    def _check_adapter_setting(cls, value: Any, info: ValidationInfo) -> Any:
        if value not in (None, []) and not info.data.get("lora_rank", 1):
            raise ValueError("is a setting of adapters: add --lora-rank")
        return value

    @field_validator("contrastive_weight")
    @classmethod
    def _check_loss(cls, contrastive_weight: float, info: ValidationInfo) -> float:
        if not contrastive_weight and not info.data.get("caption_weight", 1):
            raise ValueError("with --caption-weight 0, nothing would be learned")
        return contrastive_weight

    @field_validator("shard")
    @classmethod
    def _check_shard(cls, shard: bool, info: ValidationInfo) -> bool:
        problems = ["weights in 4 bits cannot be sharded"] if info.data.get("four_bit") else []
        problems += ["fp16 cannot be sharded, bf16 can"] if info.data.get("dtype") == "fp16" else []
        if shard and problems:
            raise ValueError("; ".join(problems))
        return shard

    @field_validator("eval_input")
    @classmethod
    def _check_eval_input(cls, specs: list[str], info: ValidationInfo) -> list[str]:
        return check_held_out(specs, info.data.get("input", []))

    @field_validator("input")
    @classmethod
    def _check_recipe_input(cls, specs: list[str], info: ValidationInfo) -> list[str]:
        if info.data.get("recipe"):
            read_recipe(info.data["recipe"]).check_input(specs)
        return specs
