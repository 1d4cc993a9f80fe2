"""A student: any CLIP model of open_clip, in training and as a folder, with the losses of reinforced sets.

B: pictures of the whole batch, K: texts of each picture, L: context length, E: embedding dimension of the student,
D: embedding dimension of all teachers together
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn

from captioners.clip import ClipSource, load_clip, read_clip_config
from captioners.resolve import CLIP_CONFIG
from finetune.losses import MAX_LOGIT_SCALE, Losses, contrastive_loss, distillation_loss, negative_loss
from finetune.student.config import StudentConfig
from finetune.student.teachers import Teachers
from imagetext.outputs import whole_files

WEIGHTS = "open_clip_model.safetensors"


class Student:
    """A CLIP model of open_clip with its tokenizer and preprocessing: `side` of a picture in pixels, `mean` and `std`.

    Raises ValueError if the model takes pictures that are not square.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, model_cfg: Mapping[str, Any]):
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.model_cfg, self.preprocess_cfg = model_cfg, dict(model.visual.preprocess_cfg)
        size = self.preprocess_cfg["size"]
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(set(sides)) > 1:
            raise ValueError(f"--student {name}: takes pictures of {sides} pixels, but views are square")
        self.side = sides[0]
        self.mean, self.std = self.preprocess_cfg["mean"], self.preprocess_cfg["std"]

    def save(self, folder: Path) -> None:
        """Write a folder that open_clip loads as `local-dir:FOLDER`, with the config last."""
        weights = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in self.model.state_dict().items()
        }
        config = {"model_cfg": dict(self.model_cfg), "preprocess_cfg": self.preprocess_cfg}
        with whole_files(folder, last=(CLIP_CONFIG,)) as staging:
            if isinstance(self.tokenizer, HFTokenizer):
                self.tokenizer.tokenizer.save_pretrained(staging)
                settings = staging / "tokenizer_config.json"
                text = settings.read_text("utf-8")
                # transformers 4 knows the class only by this name.
                settings.write_text(text.replace("TokenizersBackend", "PreTrainedTokenizerFast"), "utf-8")
            save_file(weights, staging / WEIGHTS, metadata={"format": "pt"})
            (staging / CLIP_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_student(name: str, pretrained: str | None = None) -> Student:
    """Load a student: an open_clip architecture or a folder. Without weights, it gets random ones by torch's seed.

    Raises ValueError if there is no such student or it cannot be loaded.
    """
    architecture, folder = name.replace("/", "-"), Path(name.removeprefix("local-dir:"))
    built_in = architecture in open_clip.list_models()
    if not built_in and not folder.is_dir():
        raise ValueError(f"--student {name}: is neither an architecture of open_clip nor a folder")
    if pretrained and not built_in:
        raise ValueError(
            f"--pretrained {pretrained}: is only for an architecture of open_clip, and --student {name} is a folder"
        )
    source = architecture if built_in else f"local-dir:{folder}"
    try:
        model_cfg = read_clip_config(source)
    except ValueError as error:
        raise ValueError(f"--student {name}: {error}") from error
    try:
        model, tokenizer = load_clip(ClipSource(source, pretrained, model_cfg), random=True)
    except ValueError as error:
        raise ValueError(f"--student {name}: open_clip cannot load it: {error}") from error
    return Student(name, model, tokenizer, model_cfg=model_cfg)


class StudentForward(nn.Module):
    """The student in training, a `finetune.forward.Forward`: features of both towers, and losses over the batch."""

    captions, contrasts = False, True
    pad_id: int | None = None
    depth: Callable[[str], int] | None = None

    def __init__(self, student: Student, config: StudentConfig, teachers: Teachers | None):
        super().__init__()
        self.student, self.model, self.teachers = student, student.model, teachers
        weights = {
            "distill": config.distill_weight,
            "contrastive": config.contrastive_weight,
            "negative": config.weight_of_negatives,
        }
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.text_weights = config.text_weights
        if config.grad_checkpointing:
            self.model.set_grad_checkpointing()
        self.model.to(memory_format=torch.channels_last)  # in which convolutions are faster on CPUs and GPUs
        self.model.train()

    def forward(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Return the features (B, E) and (B, K, E) of pictures (B, 3, S, S) and token ids (B, K, L).

        With hard negatives, K counts one text more: the negative.
        """
        texts = self.model.encode_text(tokens.flatten(0, 1), normalize=True).unflatten(0, tokens.shape[:2])
        return {
            "image_features": self.model.encode_image(images, normalize=True),
            "text_features": texts,
            "logit_scale": self.model.logit_scale.exp(),
        }

    def batch_losses(
        self, image: Tensor, text: Tensor, logit_scale: Tensor, pictures: Tensor, **embeddings: Tensor
    ) -> Losses:
        """Return the losses that have a weight, and statistics of negatives.

        See `reinforced_losses` and `negative_statistics`.
        """
        losses = reinforced_losses(
            image,
            text,
            logit_scale,
            pictures=pictures,
            teachers=self.teachers,
            text_weights=self.text_weights,
            names=self.weights,
            **embeddings,
        )
        if "has_negative" in embeddings:
            losses |= negative_statistics(image, text, embeddings["has_negative"])
        return losses

    def products(self) -> AbstractContextManager:
        """Return an empty context, because steps need no context."""
        return contextlib.nullcontext()

    def prepare(self, *_: Any) -> None:
        """Do nothing, because nothing has to be prepared."""

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the logit scale within its bounds after a step."""
        self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def written(self) -> Student:
        """Return the student to write."""
        return self.student


def reinforced_losses(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    pictures: Tensor,
    teachers: Teachers | None,
    text_weights: Sequence[float],
    names: Iterable[str] = ("distill", "contrastive"),
    image_emb: Tensor | None = None,
    text_emb: Tensor | None = None,
    has_negative: Tensor | None = None,
) -> Losses:
    """Return the losses of these names on a reinforced set, each the weighted sum over the K texts of a picture.

    Features (B, E) and (B, K, E) have unit length; logit_scale is not logarithmic. pictures (B,): index of each
    picture. image_emb (B, D) and text_emb (B, K, D): the teachers' embeddings as they are stored (Faghri et al. 2023,
    arXiv 2303.08983; Vasu et al. 2025, arXiv 2508.20691).
    With has_negative (B,), text features are (B, K + 1, E). The last is that of the hard negative, if there is one; it
    has no teachers' embedding.
    """

    def text_loss(name: str, kind: int) -> Tensor:
        texts = text_features[:, kind : kind + 1]
        if name == "contrastive":
            return contrastive_loss(image_features, texts, logit_scale, pictures=pictures)
        if name == "negative" and has_negative is not None:
            return negative_loss(
                image_features,
                texts,
                text_features[:, -1],
                has_negative=has_negative,
                logit_scale=logit_scale,
                pictures=pictures,
            )
        if teachers is None or image_emb is None or text_emb is None:
            raise ValueError(f"loss {name!r}: needs teachers' embeddings or negatives, which the set does not have")
        return distillation_loss(
            image_features,
            text_features[:, kind],
            logit_scale,
            image_emb=image_emb,
            text_emb=text_emb[:, kind],
            dimensions=teachers.dimensions,
            teacher_scales=teachers.logit_scales,
        )

    return {
        name: torch.stack([weight * text_loss(name, kind) for kind, weight in enumerate(text_weights)]).sum()
        for name in names
    }


def negative_statistics(image_features: Tensor, text_features: Tensor, has_negative: Tensor) -> Losses:
    """Return, for the log, the share of pictures with a negative, and how often their true texts are nearer than it.

    The latter is NaN if no picture has a negative. Features (B, E) and (B, K + 1, E), the last of them the negative's;
    has_negative (B,).
    """
    cosines = (image_features[:, None] * text_features).sum(2)  # (B, K + 1)
    true_wins = (cosines[:, :-1] > cosines[:, -1:]).float().mean(1)
    return {
        "with_negative": has_negative.float().mean(),
        "choice": (true_wins * has_negative).sum() / has_negative.sum(),
    }
