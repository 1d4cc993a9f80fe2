"""What differs between kinds of captioners in training: the forward pass, the losses, and which weights of theirs learn.

Each is a `finetune.forward.Forward`, which says what its members are.

B: pictures of the whole batch, K: captions of each, E: embedding
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

if TYPE_CHECKING:  # it brings transformers
    from captioners.vlm.captioner import VLMCaptioner

AT_ONCE = 256  # pictures that a GPU's frozen image tower sees, where its memory holds them
MLPS = "c_fc", "c_proj"  # the linear layers of open_clip's blocks
WIDE = 256  # from this width on products are large enough for Python to see each of them


class CoCaForward(nn.Module):
    """CoCa: logits and labels of the captions' tokens, and the features of both towers.

    LoRA adapters are put into the MLPs alone. open_clip's attention holds its projections as one weight, to which peft would add
    and subtract an adapter at every pass: that rounds what is frozen, more each time.
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
        self.in_onednn = wide and check_device(config.device) == "cpu"
        self.adapter: Any = None  # peft's, around the model
        if config.lora_rank:
            towers = "text|text_decoder" if config.freeze_image else "visual|text|text_decoder"
            if others := sorted(set(config.lora_targets) - {*MLPS}):
                raise ValueError(
                    f"--lora-targets {', '.join(others)}: CoCa's adapters are in {' and '.join(MLPS)} alone"
                )
            alpha: Any = config.lora_alpha or 2 * config.lora_rank  # any number, though peft's type says int
            lora = LoraConfig(
                r=config.lora_rank,
                lora_alpha=alpha,
                lora_dropout=config.lora_dropout or 0.0,
                target_modules=rf"({towers})\..*\.({'|'.join(config.lora_targets or MLPS)})",
            )
            self.adapter = get_peft_model(self.model, lora).base_model

    def written(self) -> CoCaCaptioner:
        """The captioner as it is to be written: with its adapters merged, in a copy, as merging rounds."""
        if self.adapter is None:
            return self.captioner
        captioner = copy.copy(self.captioner)
        captioner.model = copy.deepcopy(self.adapter).merge_and_unload()
        return captioner

    def forward(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        images = self.captioner.normalise(images) if isinstance(images, Tensor) else images
        output = forward_trimmed(
            self.model, images, tokens, trim=tokens.device.type == "cpu"
        )  # for a GPU, parts are cut
        # a clone: shards are gathered again where gradients of outputs come in, for which these must be no views
        return output | {"text_features": output["text_features"].clone(), "logit_scale": self.model.logit_scale.exp()}

    def products(self) -> AbstractContextManager:
        """The faster float32 products of a CPU, where the model is wide enough for them."""
        return fast_products() if self.in_onednn else contextlib.nullcontext()

    def batch_losses(self, image: Tensor, text: Tensor, logit_scale: Tensor, pictures: Tensor, **_: Tensor) -> Losses:
        """The contrastive loss of features (B, E) and (B, K, E) of the pictures of these numbers (B,)."""
        return {"contrastive": contrastive_loss(image, text, logit_scale, pictures)}

    def prepare(self, pictures: CaptionedPictures, accelerator: Accelerator, config: FinetuneConfig) -> None:
        """Before the first step: of a frozen image tower's outputs, a file."""
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
        """Keeps weights within their bounds after a step."""
        self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


class VLMForward(nn.Module):
    """A vision-language model: logits and labels of the captions' tokens alone, not of picture, prompt or chat markup."""

    captions, contrasts = True, False
    pad_id: int | None
    depth: Callable[[str], int] | None

    def __init__(self, captioner: "VLMCaptioner", config: FinetuneConfig):
        super().__init__()
        self.captioner, self.pad_id, self.weights = captioner, captioner.pad_id, {"caption": config.caption_weight}
        if config.layer_decay != 1:
            raise ValueError(
                f"--layer-decay {config.layer_decay}: is for CoCa, {captioner.name} is a vision-language model"
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
            _check_same_adapters(captioner.name, adapter.peft_config["default"], config)
        if config.lora_merge and captioner.adapter is None:
            raise ValueError(f"--lora-merge: {captioner.name} has no adapters; --lora-rank adds some")
        captioner.merges = config.lora_merge
        self.model, self.caption_logits = captioner.model, captioner.caption_logits
        if config.freeze_image:
            self.model.get_submodule(captioner.family.vision).requires_grad_(False)
        if config.grad_checkpointing:
            # The other kind loses adapters' gradients.
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()
        self.depth = None
        self.library = "transformers" if captioner.adapter is None or captioner.merges else "peft"

    def written(self) -> "VLMCaptioner":
        """The captioner as it is to be written, adapters aside."""
        return self.captioner

    def forward(self, images: Tensor | tuple[Tensor, Tensor], tokens: Tensor) -> dict[str, Tensor]:
        if isinstance(images, Tensor):
            pictures = list(images)
        else:  # of several shapes: flat and padded, with their shapes
            pictures = [
                flat[: math.prod(shape)].view(shape) for flat, shape in zip(images[0], images[1].tolist(), strict=True)
            ]
        logits, labels = self.caption_logits(pictures, tokens)
        return {"logits": logits, "labels": labels}

    def products(self) -> AbstractContextManager:
        """A step is made in no context of its own."""
        return contextlib.nullcontext()

    def batch_losses(self, *_: Tensor, **__: Tensor) -> Losses:
        """There are none: it has no features that pictures and captions share."""
        return {}

    def prepare(self, *_) -> None:
        """Nothing is done before the first step."""

    def clamp(self) -> None:
        """Nothing has bounds."""


def _check_same_adapters(name: str, lora: Any, config: FinetuneConfig) -> None:
    """Refuses settings of adapters that are not those of the model's own, which are trained on; `lora` is their LoraConfig."""
    problems = [
        f"--{flag} {asked}: {name} has adapters of {what} {has}"
        for flag, asked, what, has in (
            ("lora-rank", config.lora_rank, "rank", lora.r),
            ("lora-alpha", config.lora_alpha, "alpha", lora.lora_alpha),
            ("lora-dropout", config.lora_dropout, "dropout", lora.lora_dropout),
        )
        if asked not in (None, has)
    ]
    if config.lora_targets:
        problems.append(f"--lora-targets: {name} has its adapters where they are")
    if problems:
        raise ValueError("; ".join(problems))


def training_forward(captioner: "CoCaCaptioner | VLMCaptioner", config: FinetuneConfig) -> CoCaForward | VLMForward:
    """The captioner's forward pass in training, its weights made ready for it."""
    return CoCaForward(captioner, config) if isinstance(captioner, CoCaCaptioner) else VLMForward(captioner, config)
