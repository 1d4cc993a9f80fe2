"""What differs between kinds of captioners in training: the forward pass, the losses, and which weights are trained.

Each class implements `finetune.forward.Forward`, which describes the members.

B: pictures of the whole batch, K: captions of each picture, E: embedding dimension
"""

import contextlib
import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from captioners.coca.captioner import CoCaCaptioner
from captioners.coca.forward import forward_trimmed
from captioners.coca.onednn import fast_products
from captioners.device import check_device
from finetune.batching import decoders
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.image_cache import cache_images
from finetune.captioner.pictures import CaptionedPictures
from finetune.folder import IMAGE_CACHE
from finetune.losses import MAX_LOGIT_SCALE, Losses, contrastive_loss
from finetune.optimizer import coca_depth

if TYPE_CHECKING:  # this module imports transformers
    from captioners.vlm.captioner import VLMCaptioner

AT_ONCE = 256  # number of pictures that a GPU encodes together with a frozen image tower, if its memory holds them
MLPS = "c_fc", "c_proj"  # the linear layers of the MLPs in open_clip's blocks
WIDE = 256  # below this width, calling oneDNN from Python costs more than its matrix products can gain


class CoCaForward(nn.Module):
    """CoCa: logits and labels of the captions' tokens, and the features of both towers.

    Only the MLPs get LoRA adapters. open_clip's attention has its projections in one weight, and peft would add an
    adapter to it and subtract it again at every pass. Each time that would round the frozen weight.
    """

    captions, contrasts, library = True, True, "open_clip"
    pad_id: int | None
    depth: Callable[[str], int] | None

    def __init__(self, captioner: CoCaCaptioner, config: FinetuneConfig):
        super().__init__()
        self.captioner, self.model, self.pad_id = captioner, captioner.model, captioner.pad_id
        self.weights = {"caption": config.caption_weight, "contrastive": config.contrastive_weight}
        self.model.visual.requires_grad_(not config.freeze_image)
        self.model.set_grad_checkpointing(config.grad_checkpointing)
        self.model.train()
        self.depth = coca_depth(self.model)
        wide = config.dtype == "fp32" and self.model.text_decoder.width >= WIDE
        self.in_onednn = wide and captioner.products == "onednn" and check_device(config.device) == "cpu"
        self.adapter: Any = None  # the model with peft's adapters
        if config.lora_rank:
            towers = "text|text_decoder" if config.freeze_image else "visual|text|text_decoder"
            if others := sorted(set(config.lora_targets) - {*MLPS}):
                raise ValueError(
                    f"--lora-targets {', '.join(others)}: CoCa can only have adapters in {' and '.join(MLPS)}"
                )
            alpha: Any = config.lora_alpha or 2 * config.lora_rank  # may be any number, although peft's type is int
            lora = LoraConfig(
                r=config.lora_rank,
                lora_alpha=alpha,
                lora_dropout=config.lora_dropout or 0.0,
                target_modules=rf"({towers})\..*\.({'|'.join(config.lora_targets or MLPS)})",
            )
            self.adapter = get_peft_model(self.model, lora).base_model

    def written(self) -> CoCaCaptioner:
        """Return a captioner to write; if this one has adapters, they are merged in a copy, as merging rounds weights.

        What it keeps on a GPU to caption held-out pictures is freed with it, before training goes on.
        """
        model = self.model if self.adapter is None else copy.deepcopy(self.adapter).merge_and_unload()
        return self.captioner.with_model(model)

    def forward(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        images = self.captioner.normalise(images) if isinstance(images, Tensor) else images
        on_cpu = tokens.device.type == "cpu"  # for a GPU, `Batch.parts` has cut the tokens already
        output = forward_trimmed(self.model, images, tokens, trim=on_cpu)
        # Cloned, because sharded weights are gathered again when gradients reach the outputs, which must not be views.
        return output | {"text_features": output["text_features"].clone(), "logit_scale": self.model.logit_scale.exp()}

    def products(self) -> AbstractContextManager:
        """Return a context with float32 products by oneDNN, if it is this run's library and the model is wide."""
        return fast_products() if self.in_onednn else contextlib.nullcontext()

    def batch_losses(self, image: Tensor, text: Tensor, logit_scale: Tensor, pictures: Tensor, **_: Tensor) -> Losses:
        """Return the contrastive loss of features (B, E) and (B, K, E); pictures (B,): their indices."""
        return {"contrastive": contrastive_loss(image, text, logit_scale, pictures=pictures)}

    def prepare(self, pictures: CaptionedPictures, accelerator: Accelerator, config: FinetuneConfig) -> None:
        """If the image tower is frozen, compute and store its outputs for all pictures before the first step."""
        if config.freeze_image:
            self.model.to(accelerator.device)
            on_gpu = accelerator.device.type == "cuda"
            pictures.image = cache_images(
                pictures,
                config.output / IMAGE_CACHE,
                accelerator,
                batch_size=AT_ONCE if on_gpu else config.device_batch_size or 16,
                num_workers=decoders(config.num_workers, on_gpu),
            )

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the logit scale within its bounds after a step."""
        self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


class VLMForward(nn.Module):
    """A vision-language model: logits and labels of the captions' tokens, without picture, prompt and chat markup."""

    captions, contrasts = True, False
    pad_id: int | None
    depth: Callable[[str], int] | None

    def __init__(self, captioner: "VLMCaptioner", config: FinetuneConfig):
        super().__init__()
        self.captioner, self.pad_id, self.weights = captioner, captioner.pad_id, {"caption": config.caption_weight}
        if not config.caption_weight:
            raise ValueError(
                f"--caption-weight 0: {captioner.name} is a vision-language model, which learns from no other loss"
            )
        if config.layer_decay != 1:
            raise ValueError(
                f"--layer-decay {config.layer_decay}: is for CoCa, and {captioner.name} is a vision-language model"
            )
        adapter = captioner.adapter
        if config.lora_rank and adapter is None:
            try:
                captioner.add_lora(
                    r=config.lora_rank,
                    alpha=config.lora_alpha or 2 * config.lora_rank,
                    target_modules=captioner.language_layers(config.lora_targets),
                    dropout=0.05 if config.lora_dropout is None else config.lora_dropout,
                )
            except ValueError as error:
                raise ValueError(f"--lora-targets {' '.join(config.lora_targets)}: {error}") from error
        elif config.lora_rank and adapter is not None:
            _check_adapter_settings(captioner.name, adapter.peft_config["default"], config)
        if config.lora_merge and captioner.adapter is None:
            raise ValueError(f"--lora-merge: {captioner.name} has no adapters; --lora-rank adds some")
        captioner.merges = config.lora_merge
        self.model, self.caption_logits = captioner.model, captioner.caption_logits
        if config.freeze_image:
            self.model.get_submodule(captioner.family.vision).requires_grad_(False)
        if config.grad_checkpointing:
            # Reentrant checkpointing would lose the gradients of adapters.
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()
        self.depth = None
        self.library = "transformers" if captioner.adapter is None or captioner.merges else "peft"

    def written(self) -> "VLMCaptioner":
        """Return the captioner to write, which saves or merges its adapters itself."""
        return self.captioner

    def forward(self, images: Tensor | tuple[Tensor, Tensor], tokens: Tensor) -> dict[str, Tensor]:
        if isinstance(images, Tensor):
            pictures = list(images)
        else:  # pictures of several shapes, flat and padded, and their shapes
            pictures = [
                flat[: math.prod(shape)].view(shape) for flat, shape in zip(images[0], images[1].tolist(), strict=True)
            ]
        logits, labels = self.caption_logits(pictures, tokens)
        return {"logits": logits, "labels": labels}

    def products(self) -> AbstractContextManager:
        """Return an empty context, because steps need no context."""
        return contextlib.nullcontext()

    def batch_losses(self, *_: Tensor, **__: Tensor) -> Losses:
        """Return no losses, because the model has no features that pictures and captions share."""
        return {}

    def prepare(self, *_) -> None:
        """Do nothing, because nothing has to be prepared."""

    def clamp(self) -> None:
        """Do nothing, because no weight has bounds."""


def _check_adapter_settings(name: str, lora: Any, config: FinetuneConfig) -> None:
    """Raise ValueError if settings differ from those of the model's existing adapters; `lora` is their LoraConfig."""
    problems = [
        f"--lora-{setting} {value}: {name} has adapters of {setting} {existing}, which stays as it is"
        for setting, value, existing in (
            ("rank", config.lora_rank, lora.r),
            ("alpha", config.lora_alpha, lora.lora_alpha),
            ("dropout", config.lora_dropout, lora.lora_dropout),
        )
        if value not in (None, existing)
    ]
    if config.lora_targets:
        problems.append(
            f"--lora-targets {' '.join(config.lora_targets)}: {name} already has adapters, which cannot be moved "
            "to other layers"
        )
    if problems:
        raise ValueError("; ".join(problems))


def training_forward(captioner: "CoCaCaptioner | VLMCaptioner", config: FinetuneConfig) -> CoCaForward | VLMForward:
    """Return the captioner's forward pass for training, and prepare its weights for training."""
    return CoCaForward(captioner, config) if isinstance(captioner, CoCaCaptioner) else VLMForward(captioner, config)
