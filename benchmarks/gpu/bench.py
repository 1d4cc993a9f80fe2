"""What the parts share: how large the work is, the device, models with random weights built on it, pictures, the two ceilings."""

import copy
import dataclasses
import gc
import math
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.side_by_side import bandwidth, is_card, product_rate
from captioners.base import Request
from captioners.coca.captioner import CoCaCaptioner
from captioners.coca.load import build_model
from captioners.resolve import resolve
from captioners.weights import DTYPES

COCO_MEAN, COCO_SPREAD, COCO_LEAST, COCO_MOST = (
    12.5,
    2.5,
    8,
    30,
)  # tokens of a caption of COCO's, start and end included
DISTINCT = 64  # pictures; more of them are these again, under other keys


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the work is: on a card, unless `REHEARSAL` says otherwise."""

    large: str = "coca_ViT-L-14"
    small: str = "coca_ViT-B-32"
    captions: int = 5
    tokens: int = 30  # of a caption, start and end included
    flights: tuple[int, ...] = (256, 16, 64, 512)  # pictures in flight, the most worth knowing first
    warm: int = 192  # pictures at least of a warm figure
    product: int = 8192  # rows of a square matrix
    copy_mb: int = 4096
    paper: str = "coca_ViT-L-14"  # of the paper's loop
    peer: tuple[tuple[str, int], ...] = (("bf16", 64), ("bf16", 256), ("fp32", 64))
    parity: int = 32  # pictures
    shards: tuple[int, int] = (2, 768)  # tars, pictures in each
    sides: tuple[int, int] = (640, 480)  # of those pictures
    workers: tuple[int, ...] = (15, 8, 2)
    batches: tuple[int, ...] = (32, 64, 128)  # pictures of a training step
    steps: int = 5
    vlm_flights: tuple[int, ...] = (16, 64)
    embedded: tuple[int, int] = (2048, 1024)  # views, texts


REHEARSAL = Scale(
    large="coca_tiny",
    small="coca_tiny",
    paper="coca_ViT-B-32",
    captions=2,
    tokens=12,
    flights=(3, 2),
    warm=4,
    product=64,
    copy_mb=1,
    peer=(("bf16", 2), ("fp32", 2)),
    parity=3,
    shards=(2, 5),
    sides=(64, 48),
    workers=(1, 0),
    batches=(2,),
    steps=2,
    vlm_flights=(2,),
    embedded=(6, 4),
)


class Bench:
    """A process's device, with the models that it has built."""

    def __init__(self, output: Path, *, rehearse: bool, peer_python: Path | None = None):
        self.output, self.rehearse, self.peer_python = output, rehearse, peer_python
        self.scale = REHEARSAL if rehearse else Scale()
        self.device = "cpu" if rehearse else "cuda"
        self.card = is_card(self.device)
        self.captioner, self.rate, self.bandwidth = cache(self.build), cache(self._rate), cache(self._bandwidth)
        self.pixels: dict[str, list[Tensor]] = {}  # by the captioner's name

    def build(self, architecture: str, dtype: str, ending: bool = False) -> CoCaCaptioner:
        """A captioner with random weights, built where it will work; `captioner` is the same, built once.

        ending: its captions end at many lengths, see `let_captions_end`; those of others go on to the limit.
        """
        torch.manual_seed(0)
        source = dataclasses.replace(resolve(architecture), weights=None)
        with torch.device(self.device):
            model = build_model(source)
        if ending:
            let_captions_end(model, CoCaCaptioner(model, source, weights_sha256="").end_id)
        return CoCaCaptioner(model.to(self.device, DTYPES[dtype]).eval(), source, weights_sha256="0" * 64)

    def anew(self, captioner: CoCaCaptioner) -> CoCaCaptioner:
        """The same model, with nothing kept of earlier captions: their graphs and caches."""
        again = copy.copy(captioner)
        again._free_slots = []
        return again

    def pictures(self, captioner: CoCaCaptioner, count: int) -> Iterator[Request]:
        """So many pictures as `caption` takes them, with their keys."""
        if captioner.name not in self.pixels:
            self.pixels[captioner.name] = self._pixels(captioner)
        distinct = self.pixels[captioner.name]
        return (Request(f"picture/{number}", distinct[number % DISTINCT]) for number in range(count))

    def _pixels(self, captioner: CoCaCaptioner) -> list[Tensor]:
        from PIL import Image  # late: of this method alone

        generator = torch.Generator().manual_seed(0)
        high, wide = captioner.preprocess_cfg["size"]
        noise = torch.randint(256, (DISTINCT, high, wide, 3), dtype=torch.uint8, generator=generator)
        return [captioner.preprocess(Image.fromarray(pixels)) for pixels in noise.numpy()]

    def _rate(self, dtype: str, tf32: bool = False) -> float:
        """FLOP/s of large products, in fp32 with or without TF32."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            return product_rate(DTYPES[dtype], self.device, self.scale.product)
        finally:
            torch.set_float32_matmul_precision(before)

    def _bandwidth(self) -> float:
        return bandwidth(self.device, self.scale.copy_mb)

    def gigabytes(self) -> float:
        """The most memory of the card that was taken since `forget`; 0 on a CPU."""
        return round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.card else 0.0

    def forget(self) -> None:
        """Gives memory back, and begins to look for the most anew."""
        gc.collect()
        if self.card:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def __str__(self) -> str:
        name = torch.cuda.get_device_name() if self.card else "a CPU, rehearsed: the figures mean nothing"
        return f"{name}, torch {torch.__version__}"


def coco_lengths(count: int) -> list[int]:
    """Tokens of so many captions, spread as those of COCO's are."""
    chosen = random.Random(count)
    return [min(COCO_MOST, max(COCO_LEAST, round(chosen.gauss(COCO_MEAN, COCO_SPREAD)))) for _ in range(count)]


def let_captions_end(model: torch.nn.Module, end_id: int, share: float = 0.2) -> None:
    """Gives the end token about this share of the probability at every position; all of it stands in the weights.

    The last layer norm makes one number of the hidden state a constant, and that number alone is read by the end token. With a
    `min_length` of 8 captions so have about 12.5 tokens, as COCO's do, but spread wider, with some up to the limit.
    """
    with torch.no_grad():
        norm, projection = model.text_decoder.ln_final, model.text_decoder.text_projection  # (W,), (W, V)
        norm.weight[0], norm.bias[0] = 0, 1
        others = (len(projection) - 1) * projection[1:].var() / 2  # half the variance of the other logits
        projection[0], projection[:, end_id] = 0, 0
        projection[0, end_id] = math.log(share / (1 - share) * projection.shape[1]) + others
