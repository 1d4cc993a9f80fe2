"""Teachers: CLIP models of open_clip, our captioners among them, and their embeddings of views and texts.

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
    """A CLIP model in eval mode, its tokenizer, and how it takes pictures.

    `size` is height and width in pixels; `logit_scale` the factor of the cosines it was trained with; `in_turn`: the model is
    on its device only while it is used.
    """

    name: str
    model: Any  # CLIP, CustomTextCLIP or CoCa of open_clip, which have no class in common but torch's
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
        """What a run's files say of a teacher."""
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
        """Embeddings (N, E) and (T, E) of views (N, 3, S, S), uint8, and texts; float32, each of length 1.

        A teacher that takes smaller pictures than S sees the views resized. Texts are cut to its context by its own tokenizer.
        Raises: ValueError where the embeddings are no finite numbers.
        """
        self.model.to(self.device)
        try:
            # not inference_mode, in which linear layers come whole to fast_products, and pass it by
            with torch.no_grad(), fast_products() if self.device == "cpu" else nullcontext():
                of_views = [self._encode_views(batch) for batch in views.split(batch_size) if len(batch)]
                of_texts = [
                    self._encode_texts(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)
                ]
        finally:
            if self.in_turn:
                self.model.to("cpu")
        return self._joined(of_views), self._joined(of_texts)

    def _joined(self, batches: list[Tensor]) -> Tensor:
        """Batches (n, E) of embeddings of any length, on the device, as one (N, E)."""
        if not batches:
            return torch.zeros(0, self.dimension)
        # Each teacher's embeddings have length 1 before teachers are joined: so the losses on reinforced sets take them.
        embeddings = F.normalize(torch.cat(batches), dim=-1).cpu()
        if not embeddings.isfinite().all():
            raise ValueError(f"teacher {self.name}: embeddings that are no finite numbers; does {self.dtype} fit it?")
        return embeddings

    def _encode_views(self, views: Tensor) -> Tensor:
        pixels = normalise(views.to(self.device), self.mean, self.std)
        if tuple(pixels.shape[-2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bicubic")  # as the reference: without antialiasing
        return self.model.encode_image(pixels.to(self.dtype), normalize=False).float()

    def _encode_texts(self, texts: Sequence[str]) -> Tensor:
        return encode_texts(self.model, self.tokenizer(list(texts)).to(self.device)).float()


def encode_texts(model: Any, tokens: Tensor) -> Tensor:
    """Embeddings (T, E), of any length, of tokens (T, L); a CLIP reads them up to the last end alone.

    Its attention is causal and its embedding that of the end, so what is behind tells it nothing, and most texts are short.
    """
    if not _reads_to_the_end(model):
        return model.encode_text(tokens, normalize=False)
    ends = tokens if model.text_pool_type == "argmax" else (tokens == model.text_eos_id).int()
    length = int(ends.argmax(dim=1).max()) + 1
    cut = {"positional_embedding": model.positional_embedding[:length], "attn_mask": model.attn_mask[:length, :length]}
    return functional_call(model, cut, kwargs={"text": tokens[:, :length]})[1]


def _reads_to_the_end(model: Any) -> bool:
    """Whether the model is a CLIP whose attention to texts is causal and whose embedding is that of their end."""
    return isinstance(model, CLIP) and model.attn_mask is not None and model.text_pool_type in ("argmax", "eos")


def load_teachers(names: Sequence[str], device: str, dtype: str) -> list[Teacher]:
    """The teachers, in this order; where a GPU's free memory does not hold twice all of them, they use it in turn.

    Raises: ValueError that names every teacher that cannot be had, and why.
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
    """The teacher of that name: one of ours, or as `clip_source` says; ValueError where there is none."""
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
    with torch.inference_mode():  # of the weights as they are stored: in bf16, a scale of 100 is 98.9
        known: dict[str, Any] = {
            "dimension": model.eval().encode_text(tokenizer([""])).shape[-1],
            "logit_scale": model.logit_scale.exp().item(),
            "logit_bias": None if bias is None else bias.item(),
            "weights_sha256": state_sha256(model.state_dict()),
        }
    return Teacher(
        name,
        model.to(DTYPES[dtype]),
        tokenizer,
        (height, width),
        tuple(cfg["mean"]),
        tuple(cfg["std"]),
        **known,
        device=device,
    )
