"""What differs between kinds of captioners in training: the forward pass, the losses, and which weights of theirs learn.

Each is a `finetune.trainer.Forward`, which says what its members are.

B: pictures of the whole batch, K: captions of each, E: embedding
"""

import contextlib
import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from captioners.base import TrainableCaptioner
from captioners.coca.captioner import CoCaCaptioner
from captioners.coca.forward import forward_trimmed
from captioners.coca.onednn import fast_products
from captioners.device import check_device
from finetune.batching import CaptionedPictures, decoders
from finetune.captioner.config import FinetuneConfig
from finetune.captioner.image_cache import FOLDER, cache_images
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
    products: Callable[[], AbstractContextManager]

    def __init__(self, captioner: CoCaCaptioner, config: FinetuneConfig):
        super().__init__()
        self.captioner, self.model, self.pad_id = captioner, captioner.model, captioner.pad_id
        self.weights = {"caption": config.caption_weight, "contrastive": config.contrastive_weight}
        self.model.visual.requires_grad_(not config.freeze_image)
        self.model.set_grad_checkpointing(config.grad_checkpointing)
        self.model.train()
        self.depth = coca_depth(self.model)
        wide = config.dtype == "fp32" and self.model.text_decoder.width >= WIDE
        on_cpu = check_device(config.device) == "cpu"
        self.products = fast_products if wide and on_cpu else contextlib.nullcontext
        self.adapter = None
        if config.lora_rank:
            towers = "text|text_decoder" if config.freeze_image else "visual|text|text_decoder"
            if others := sorted(set(config.lora_targets) - {*MLPS}):
                raise ValueError(
                    f"--lora-targets {', '.join(others)}: CoCa's adapters are in {' and '.join(MLPS)} alone"
                )
            lora = LoraConfig(
                r=config.lora_rank,
                lora_alpha=config.lora_alpha or 2 * config.lora_rank,
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
                config.output / FOLDER,
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
    products: Callable[[], AbstractContextManager]

    def __init__(self, captioner: "VLMCaptioner", config: FinetuneConfig):
        super().__init__()
        self.captioner, self.pad_id, self.weights = captioner, captioner.pad_id, {"caption": config.caption_weight}
        if config.layer_decay != 1:
            raise ValueError(
                f"--layer-decay {config.layer_decay}: is for CoCa, {captioner.name} is a vision-language model"
            )
        if config.lora_rank and captioner.adapter is None:
            try:
                captioner.add_lora(
                    r=config.lora_rank,
                    alpha=config.lora_alpha or 2 * config.lora_rank,
                    target_modules=captioner.language_layers(config.lora_targets),
                    dropout=0.05 if config.lora_dropout is None else config.lora_dropout,
                )
            except ValueError as error:
                raise ValueError(f"--lora-targets {' '.join(config.lora_targets)}: {error}") from error
        elif config.lora_rank:
            _check_same_adapters(captioner, config)
        if config.lora_merge and captioner.adapter is None:
            raise ValueError(f"--lora-merge: {captioner.name} has no adapters; --lora-rank adds some")
        captioner.merges = config.lora_merge
        self.model, self.caption_logits = captioner.model, captioner.caption_logits
        if config.freeze_image:
            self.model.get_submodule(captioner.family.vision).requires_grad_(False)
        if config.grad_checkpointing:
            self.model.gradient_checkpointing_enable(
                {"use_reentrant": False}
            )  # the other kind loses adapters' gradients
        self.model.train()
        self.depth, self.products = None, contextlib.nullcontext
        self.library = "transformers" if captioner.adapter is None or captioner.merges else "peft"

    def written(self) -> "VLMCaptioner":
        """The captioner as it is to be written, adapters aside."""
        return self.captioner

    def forward(self, images: Tensor | tuple[Tensor, Tensor], tokens: Tensor) -> dict[str, Tensor]:
        if not isinstance(images, Tensor):  # of several shapes: flat and padded, with their shapes
            images = [
                flat[: math.prod(shape)].view(shape) for flat, shape in zip(images[0], images[1].tolist(), strict=True)
            ]
        logits, labels = self.caption_logits(images, tokens)
        return {"logits": logits, "labels": labels}

    def batch_losses(self, *_: Tensor, **__: Tensor) -> Losses:
        """There are none: it has no features that pictures and captions share."""
        return {}

    def prepare(self, *_) -> None:
        """Nothing is done before the first step."""

    def clamp(self) -> None:
        """Nothing has bounds."""


def _check_same_adapters(captioner: "VLMCaptioner", config: FinetuneConfig) -> None:
    """Refuses settings of adapters that are not those of the model's own, which are trained on."""
    theirs = captioner.adapter.peft_config["default"]
    problems = [
        f"--{name} {asked}: {captioner.name} has adapters of {what} {has}"
        for name, asked, what, has in (
            ("lora-rank", config.lora_rank, "rank", theirs.r),
            ("lora-alpha", config.lora_alpha, "alpha", theirs.lora_alpha),
            ("lora-dropout", config.lora_dropout, "dropout", theirs.lora_dropout),
        )
        if asked not in (None, has)
    ]
    if config.lora_targets:
        problems.append(f"--lora-targets: {captioner.name} has its adapters where they are")
    if problems:
        raise ValueError("; ".join(problems))


def training_forward(captioner: TrainableCaptioner, config: FinetuneConfig) -> CoCaForward | VLMForward:
    """The captioner's forward pass in training, its weights made ready for it."""
    return (CoCaForward if isinstance(captioner, CoCaCaptioner) else VLMForward)(captioner, config)
