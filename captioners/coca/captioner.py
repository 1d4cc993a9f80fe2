"""CoCa captioners on open_clip: preprocessing, captioning, saving.

Dimensions: N pictures, C captions of each, H, W height and width of a picture, S image tokens, E embedding.
"""

import copy
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from open_clip.coca_model import CoCa
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import Compose, PILToTensor

from captioners.base import Captioned, Request, SamplingConfig, picture_of
from captioners.coca.decode import Decoding
from captioners.coca.forward import encode_images, encode_text_trimmed
from captioners.coca.onednn import fast_products
from captioners.coca.products import Products
from captioners.coca.tokenizer import CaptionTokenizer
from captioners.decoding.device import send, stack
from captioners.decoding.rows import DecodedPicture, Rules, peak_bytes
from captioners.decoding.search import evaluating, search, to_captions
from captioners.decoding.slots import SlotDrawing, Slots
from captioners.names import check_name
from captioners.resolve import CLIP_CONFIG, CaptionerSource
from captioners.safe_reading import attempt
from captioners.weights import DTYPES
from imagetext.outputs import whole_files


class CoCaCaptioner:
    """An open_clip CoCa with the tokenizer and the preprocessing that its source names.

    model: open_clip's CoCa, in eval mode.
    weights_sha256: hash of the weights in float32, whatever the model's dtype.
    context_length: maximum tokens, start and end included, without the CLS token that open_clip appends.
    batch_size: default number of pictures captioned at a time.
    products: the library of float32 products on a CPU; the last bits of results depend on it.
    """

    looks_at_pictures = needs_picture = True
    takes_instruction = needs_instruction = False

    def __init__(
        self,
        model: CoCa,
        source: CaptionerSource,
        *,
        weights_sha256: str,
        products: Products = "onednn",
    ):
        self.model = model
        self.products: Products = products
        self.batch_size = 16
        self.name = source.name
        self.weights_sha256 = weights_sha256
        self.model_cfg = source.model_cfg
        self.preprocess_cfg, self._mean_and_std, self.preprocess = attempt(
            f"{source.config_from}: open_clip cannot prepare pictures with its preprocess_cfg",
            _preprocessing,
            source.preprocess_cfg,
            model.visual.image_size,
        )
        self.tokenizer = CaptionTokenizer(source.model_cfg, source.folder)
        self.start_id, self.end_id = self.tokenizer.start_id, self.tokenizer.end_id
        self.pad_id = self.tokenizer.pad_id
        self.context_length = min(model.text.context_length, model.text_decoder.context_length)
        self.description = self._describe(source)
        self._free_slots: list[Slots] = []  # on a GPU: slots of earlier calls, with their CUDA graphs, for reuse

    def check(self, sampling: SamplingConfig, *, similarity: bool = False) -> None:
        """Raise ValueError if the captioner does not support the sampling."""
        self._rules(sampling)

    def caption(
        self,
        requests: Iterable[Request],
        sampling: SamplingConfig,
        *,
        column: str = "",
        first_index: int = 0,
        similarity: bool = False,
        batch_size: int | None = None,
    ) -> Iterator[Captioned]:
        """Caption the pictures (3, H, W) of requests (see `captioners.base.Captioner`); results in input order.

        Each caption starts with sampling.prefix.
        similarity: also compute the cosine of each caption's and its picture's embedding, which takes one more pass of
            the text tower.
        Raises ValueError if the captioner does not support the sampling, before the first picture is read.
        """
        rules = self._rules(sampling)
        batch_size = batch_size or self.batch_size
        if self.on_gpu and sampling.strategy != "beam":
            decoded = SlotDrawing(
                partial(self._take_slots, rules),
                self._free_slots.append,
                requests,
                rules=rules,
                batch_size=batch_size,
                column=column,
                first_index=first_index,
            )
        else:
            decoded = search(
                self._begin(rules), requests, rules, batch_size=batch_size, column=column, first_index=first_index
            )
        return to_captions(
            decoded,
            self.model,
            self.decode,
            similarities=self._similarities if similarity else None,
            pictures_at_once=64 if self.on_gpu else 1,
            stops=sampling.stops,
        )

    def with_model(self, model: CoCa) -> "CoCaCaptioner":
        """Return this captioner with a model, without what earlier calls keep on a GPU."""
        captioner = copy.copy(self)
        captioner.model, captioner._free_slots = model, []
        return captioner

    @property
    def on_gpu(self) -> bool:
        """Whether the model's weights are on a CUDA device."""
        return self.model.logit_scale.is_cuda

    def _take_slots(self, rules: Rules, count: int) -> Slots:
        """Slots for this sampling: free slots of an earlier call, with their CUDA graph, or new ones."""
        weights = [weight.data_ptr() for weight in self.model.parameters()]  # a graph holds addresses of weights
        for index, slots in enumerate(self._free_slots):
            fits = isinstance(slots.rows, _SlotRows) and slots.rows.weights == weights
            if fits and (slots.count, slots.rules.sampling) == (count, rules.sampling):
                return self._free_slots.pop(index)
        try:
            return Slots(_SlotRows(self, rules, count, weights=weights), rules, count)
        except torch.OutOfMemoryError:
            self._free_slots.clear()
            raise

    @torch.no_grad()
    def _similarities(self, pictures: Sequence[DecodedPicture]) -> list[list[float]]:
        """The cosines between the embeddings of captions and that of their picture, for each picture.

        Of a caption longer than the context, the first tokens and an end token are embedded.
        """
        limit = self.context_length
        rows = []
        for picture in pictures:
            for caption in picture.captions:
                ids = caption.tokens
                rows.append([*ids[: limit - 1], self.end_id] if len(ids) > limit else ids)
        tokens = torch.full((len(rows), max(map(len, rows))), self.pad_id)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        with fast_products() if self.products == "onednn" and not self.on_gpu else nullcontext():
            features, _ = encode_text_trimmed(self.model, tokens)
        features = features.float().cpu().unflatten(0, (len(pictures), -1))  # (N, C, E)
        return [
            (caption_features @ picture.features).tolist()
            for caption_features, picture in zip(features, pictures, strict=True)
            if picture.features is not None  # never None for a CoCa
        ]

    def normalise(self, pictures: Tensor) -> Tensor:
        """Do the last steps of open_clip's transform, on the pictures' device: uint8 (N, 3, H, W) to float32.

        Pictures of another dtype are returned unchanged.
        """
        if pictures.dtype != torch.uint8:
            return pictures
        if self._mean_and_std.device != pictures.device:
            # moved only once, because a CUDA graph holds their address
            self._mean_and_std = send(self._mean_and_std, pictures.device)
        mean, std = self._mean_and_std
        return pictures.float().div_(255).sub_(mean).div_(std)

    def bytes_per_picture(self, sampling: SamplingConfig) -> int:
        """Estimate the peak memory, in bytes, of a picture in flight and its captions."""
        rules = self._rules(sampling)
        with evaluating(self.model), torch.no_grad():
            _, rows = self._begin(rules)([Request("", torch.zeros(3, *self.preprocess_cfg["size"]))])
        return peak_bytes(sampling, rows.bytes_per_picture, self.model.text.vocab_size)

    def _begin(self, rules: Rules) -> Callable[[Sequence[Request]], tuple[Tensor, Decoding]]:
        """Return the function that encodes the pictures (3, H, W) of requests and begins their rows."""

        def begin(requests: Sequence[Request]) -> tuple[Tensor, Decoding]:
            pictures = stack([*map(picture_of, requests)], self.model.logit_scale.device)
            features, image_tokens = self._encode(pictures)
            return features, self._begin_rows(image_tokens, rules)

        return begin

    def _begin_rows(self, image_tokens: Tensor, rules: Rules) -> Decoding:
        """The rows of pictures with these image tokens (N, S, W), one of each picture."""
        return Decoding(self.model, image_tokens, limit=rules.max_length - 2, products=self.products)

    def _encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised features (N, E) and image tokens (N, S, W) of pictures (N, 3, H, W)."""
        pictures = self.normalise(pictures).to(self.model.logit_scale.dtype)
        return encode_images(self.model, pictures, products=self.products)

    def _rules(self, sampling: SamplingConfig) -> Rules:
        """The decoding rules for this sampling; ValueError if the captioner does not support it."""
        banned = self.tokenizer.banned_ids(self.model.text.vocab_size)
        return Rules.of_captioner(self, sampling, banned, device=self.model.logit_scale.device)

    def encode_text_ids(self, text: str) -> list[int]:
        """All token ids of a text, from start to end token, without truncation."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids up to the first end token, without special tokens."""
        return self.tokenizer.decode(ids)

    def save(self, folder: str | os.PathLike, name: str, *, dtype: str = "fp32") -> None:
        """Write config, weights and tokenizer files to a folder that open_clip loads as `local-dir:FOLDER`.

        name: the captioner's name in columns of records ([a-z0-9_]+), stored in the config under `capsmith`.
        Each file is written under a temporary name and then renamed, the config last.
        Raises ValueError for a bad name.
        """
        check_name(name)
        state = self.model.state_dict()
        weights = {key: value.detach().to("cpu", DTYPES[dtype]).contiguous() for key, value in state.items()}
        config = {
            "model_cfg": dict(self.model_cfg) | {"custom_text": True},  # without this, open_clip builds a CLIP
            "preprocess_cfg": self.preprocess_cfg,
            "capsmith": {"name": name},
        }
        with whole_files(folder, last=(CLIP_CONFIG,)) as staging:
            self.tokenizer.copy_files(staging)
            save_file(weights, staging / "open_clip_model.safetensors", metadata={"format": "pt"})
            (staging / CLIP_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def _describe(self, source: CaptionerSource) -> str:
        """The lines about the model that are printed before a run."""
        cfg = self.preprocess_cfg
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        mean, std = (", ".join(f"{number:.4g}" for number in cfg[key]) for key in ("mean", "std"))
        height, width = cfg["size"]
        return "\n".join(
            (
                f"architecture: {self.name}, CoCa of {num_parameters / 1e6:.1f} M parameters ({source.config_from})",
                f"context: {self.context_length} tokens + CLS (text_cfg and multimodal_cfg of {source.config_from})",
                f"normalisation: mean ({mean}), std ({std});"
                f" {height} x {width} px, {cfg['interpolation']}, {cfg['resize_mode']}"
                f" ({source.preprocess_from or 'the default of open_clip, as the source has none'})",
                f"weights: {source.weights or 'random'}",
            )
        )


def _preprocessing(
    preprocess_cfg: Mapping[str, Any], size: tuple[int, int]
) -> tuple[dict[str, Any], Tensor, Callable[[Image.Image], Tensor]]:
    """Return open_clip's complete preprocessing config, mean and std (2, 3, 1, 1), and the transform to pixels.

    The transform turns a decoded RGB picture into (3, H, W) uint8, a quarter of the bytes of float32 to send to the
    model. It does not refer to the model, so other processes can run it. `normalise` does the remaining steps.
    size: height and width of the image tower's input, which overrides the config's, as in open_clip's factory.
    """
    merged = merge_preprocess_dict(PreprocessCfg(), dict(preprocess_cfg)) | {"size": size}
    cfg: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in merged.items()}
    transform: Any = image_transform_v2(PreprocessCfg(**cfg), is_train=False)
    *resize_steps, _to_tensor, _normalize = transform.transforms
    mean_and_std = torch.tensor([cfg["mean"], cfg["std"]])
    if mean_and_std.shape != (2, 3):
        raise ValueError(f"mean {cfg['mean']} and std {cfg['std']} are not three numbers each")
    if not mean_and_std.isfinite().all() or not mean_and_std[1].all():
        raise ValueError(f"mean {cfg['mean']} and std {cfg['std']} do not make numbers of pixels; no std may be 0")
    return cfg, mean_and_std[..., None, None], Compose([*resize_steps, PILToTensor()])


class _SlotRows:
    """A CoCa's rows at fixed positions in memory (see `captioners.decoding.slots.SlotRows`)."""

    def __init__(self, captioner: CoCaCaptioner, rules: Rules, slots: int, weights: Sequence[int]):
        # a captioner without slots: one that has these would keep them, and they it, until Python looks for cycles
        self.captioner, self.weights = captioner.with_model(captioner.model), weights
        blank = torch.zeros(1, 3, *captioner.preprocess_cfg["size"], device=rules.prefix.device)
        _, image_tokens = captioner._encode(blank)
        self.decoding = captioner._begin_rows(image_tokens.expand(slots, -1, -1), rules)
        self.decoding.keep(torch.arange(slots, device=blank.device).repeat_interleave(rules.sampling.num_captions))

    def begin(self, slots: Tensor, pictures: Tensor) -> Tensor:
        features, image_tokens = self.captioner._encode(pictures)
        self.decoding.restart(slots, image_tokens)
        return features

    def step(self, tokens: Tensor) -> Tensor:
        return self.decoding.step(tokens[:, None], self.decoding.limit)[:, 0]
