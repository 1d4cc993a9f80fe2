"""Teachers: CLIP models of open_clip, or our own captioners, which embed views and texts.

Dimensions: N views, T texts, L tokens of a text, S side of a view, E embedding of a teacher.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor
from torch.func import functional_call

from captioners.clip import find_clip, load_clip
from captioners.coca.onednn import fast_products
from captioners.resolve import SHIPPED, shipped_models
from captioners.weights import DTYPES, state_sha256
from imagetext.reinforced.views import normalise


@dataclass(frozen=True)
class Teacher:
    """A CLIP model in eval mode, with its tokenizer and the pictures that it takes.

    size: height and width in pixels. logit_scale: the factor of the cosines that it was trained with.
    in_turn: whether the model is on its device only while it is used.
    """

    name: str
    model: Any  # CLIP, CustomTextCLIP or CoCa of open_clip; their only common class is torch's
    tokenizer: Any
    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]
    dimension: int
    logit_scale: float
    logit_bias: float | None
    weights_sha256: str
    device: str = "cpu"
    in_turn: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return self.model.logit_scale.dtype

    def describe(self) -> dict[str, Any]:
        """Return what the files of a run record of the teacher."""
        return {
            "name": self.name,
            "dimension": self.dimension,
            "logit_scale": self.logit_scale,
            "logit_bias": self.logit_bias,
            "size": list(self.size),
            "mean": list(self.mean),
            "std": list(self.std),
            "weights_sha256": self.weights_sha256,
        }

    def embed(self, views: Tensor, texts: Sequence[str], batch_size: int) -> tuple[Tensor, Tensor]:
        """Embed views (N, 3, S, S), uint8, and texts; returns (N, E) and (T, E), float32, each row of length 1.

        Views are resized for a teacher that takes smaller pictures than S. Its tokenizer cuts texts to its context.
        Raises: ValueError where the embeddings are no finite numbers.
        """
        self.model.to(self.device)
        try:
            # Not inference_mode: in it, fast_products would not see the products within linear layers.
            with torch.no_grad(), fast_products() if self.device == "cpu" else nullcontext():
                view_batches = [self._encode_views(batch) for batch in views.split(batch_size) if len(batch)]
                text_batches = [
                    self._encode_texts(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)
                ]
        finally:
            if self.in_turn:
                self.model.to("cpu")
        return self._normalized(view_batches), self._normalized(text_batches)

    def _normalized(self, batches: list[Tensor]) -> Tensor:
        """Join batches (n, E) on the device to one tensor (N, E) on the CPU, with rows of length 1."""
        if not batches:
            return torch.zeros(0, self.dimension)
        # Each teacher's part has length 1 before teachers are joined: the losses on reinforced sets expect this.
        embeddings = F.normalize(torch.cat(batches), dim=-1).cpu()
        if not embeddings.isfinite().all():
            raise ValueError(
                f"teacher {self.name}: its embeddings are no finite numbers; try another --dtype than {self.dtype}"
            )
        return embeddings

    def _encode_views(self, views: Tensor) -> Tensor:
        pixels = normalise(views.to(self.device), self.mean, self.std)
        if tuple(pixels.shape[-2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bicubic")  # without antialiasing, as in the reference
        return self.model.encode_image(pixels.to(self.dtype), normalize=False).float()

    def _encode_texts(self, texts: Sequence[str]) -> Tensor:
        return encode_texts(self.model, self.tokenizer(list(texts)).to(self.device)).float()


def encode_texts(model: Any, tokens: Tensor) -> Tensor:
    """Embed tokens (T, L); returns (T, E), not normalized.

    A CLIP model gets the tokens only up to the last end token in the batch, which saves time because most texts are
    short. The result is the same: its attention is causal, and the embedding is that of the end token.
    """
    if not _stops_at_the_end_token(model):
        return model.encode_text(tokens, normalize=False)
    ends = tokens if model.text_pool_type == "argmax" else (tokens == model.text_eos_id).int()
    length = int(ends.argmax(dim=1).max()) + 1
    shortened = {
        "positional_embedding": model.positional_embedding[:length],
        "attn_mask": model.attn_mask[:length, :length],
    }
    return functional_call(model, shortened, kwargs={"text": tokens[:, :length]})[1]


def _stops_at_the_end_token(model: Any) -> bool:
    """Return whether the model is a CLIP with causal attention whose text embedding is that of the end token."""
    return isinstance(model, CLIP) and model.attn_mask is not None and model.text_pool_type in ("argmax", "eos")


def load_teachers(names: Sequence[str], device: str, dtype: str) -> list[Teacher]:
    """Load the teachers, in this order. If a GPU's free memory does not hold twice their weights, they use it in turn.

    Raises: ValueError that names every teacher that cannot be loaded, and why.
    """
    teachers, problems = [], []
    for name in names:
        try:
            teachers.append(load_teacher(name, device, dtype))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n  ".join(problems))
    needed = sum(parameter.nbytes for teacher in teachers for parameter in teacher.model.parameters())
    free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else math.inf
    return [replace(teacher, in_turn=len(teachers) > 1 and 2 * needed > free) for teacher in teachers]


def load_teacher(name: str, device: str = "cpu", dtype: str = "fp32") -> Teacher:
    """Load the teacher of that name: a shipped captioner, or a CLIP model as `captioners.clip.find_clip` names it.

    Raises: ValueError where there is none, or it cannot be loaded.
    """
    try:
        source = find_clip(str(SHIPPED / name) if name in shipped_models() else name)
    except ValueError as error:
        raise ValueError(f"teacher {name}: {error}") from error
    try:
        model, tokenizer = load_clip(source)
    except ValueError as error:
        raise ValueError(f"teacher {name}: open_clip cannot load it: {error}") from error
    cfg = model.visual.preprocess_cfg
    height, width = (cfg["size"], cfg["size"]) if isinstance(cfg["size"], int) else cfg["size"]
    bias = getattr(model, "logit_bias", None)
    with torch.inference_mode():  # before the weights become bf16, where a scale of 100 would be 98.9
        measured: dict[str, Any] = {
            "dimension": model.eval().encode_text(tokenizer([""])).shape[-1],
            "logit_scale": model.logit_scale.exp().item(),
            "logit_bias": None if bias is None else bias.item(),
            "weights_sha256": state_sha256(model.state_dict()),
        }
    return Teacher(
        name,
        model.to(DTYPES[dtype]),
        tokenizer,
        size=(height, width),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        **measured,
        device=device,
    )
