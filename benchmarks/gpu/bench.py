"""What all parts share: the size of the work, the device, models with random weights, pictures, the two ceilings."""

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
)  # numbers of tokens of COCO's captions, with start and end
DISTINCT = 64  # different pictures; if more are needed, these are repeated under other keys


@dataclasses.dataclass(frozen=True)
class Scale:
    """The size of the work. The defaults are for a card; `REHEARSAL` is for a CPU."""

    large: str = "coca_ViT-L-14"
    small: str = "coca_ViT-B-32"
    captions: int = 5
    tokens: int = 30  # tokens of a caption, with start and end
    flights: tuple[int, ...] = (256, 16, 64, 512)  # pictures captioned at a time, the most important number first
    warm: int = 192  # least number of pictures for a warm figure
    product: int = 8192  # rows of the square matrices that are multiplied
    copy_mb: int = 4096
    paper: str = "coca_ViT-L-14"  # architecture of the paper's loop
    peer: tuple[tuple[str, int], ...] = (("bf16", 64), ("bf16", 256), ("fp32", 64))
    parity: int = 32  # pictures of `parity`
    shards: tuple[int, int] = (2, 768)  # number of tars, pictures in each
    sides: tuple[int, int] = (640, 480)  # width and height of these pictures
    workers: tuple[int, ...] = (15, 8, 2)
    batches: tuple[int, ...] = (32, 64, 128)  # pictures per training step
    steps: int = 5
    vlm_flights: tuple[int, ...] = (16, 64)
    embedded: tuple[int, int] = (2048, 1024)  # number of views, number of texts


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
    """The device of a process, and the models that it has built."""

    def __init__(self, output: Path, *, rehearse: bool, peer_python: Path | None = None):
        self.output, self.rehearse, self.peer_python = output, rehearse, peer_python
        self.scale = REHEARSAL if rehearse else Scale()
        self.device = "cpu" if rehearse else "cuda"
        self.card = is_card(self.device)
        self.captioner, self.rate, self.bandwidth = cache(self.build), cache(self._rate), cache(self._bandwidth)
        self.pixels: dict[str, list[Tensor]] = {}  # by the captioner's name

    def build(self, architecture: str, dtype: str, ending: bool = False) -> CoCaCaptioner:
        """Build a captioner with random weights on the device. `captioner` is the same function with a cache.

        ending: whether captions end at different lengths, see `let_captions_end`; otherwise they go on to the limit
        """
        torch.manual_seed(0)
        source = dataclasses.replace(resolve(architecture), weights=None)
        with torch.device(self.device):
            model = build_model(source)
        if ending:
            let_captions_end(model, CoCaCaptioner(model, source, weights_sha256="").end_id)
        return CoCaCaptioner(model.to(self.device, DTYPES[dtype]).eval(), source, weights_sha256="0" * 64)

    def anew(self, captioner: CoCaCaptioner) -> CoCaCaptioner:
        """The same captioner without the graphs and caches of earlier captions."""
        again = copy.copy(captioner)
        again._free_slots = []
        return again

    def pictures(self, captioner: CoCaCaptioner, count: int) -> Iterator[Request]:
        """Yield `count` requests with pictures for `caption`."""
        if captioner.name not in self.pixels:
            self.pixels[captioner.name] = self._pixels(captioner)
        distinct = self.pixels[captioner.name]
        return (Request(f"picture/{number}", distinct[number % DISTINCT]) for number in range(count))

    def _pixels(self, captioner: CoCaCaptioner) -> list[Tensor]:
        from PIL import Image  # late, because only this method needs it

        generator = torch.Generator().manual_seed(0)
        high, wide = captioner.preprocess_cfg["size"]
        noise = torch.randint(256, (DISTINCT, high, wide, 3), dtype=torch.uint8, generator=generator)
        return [captioner.preprocess(Image.fromarray(pixels)) for pixels in noise.numpy()]

    def _rate(self, dtype: str, tf32: bool = False) -> float:
        """FLOP/s of large matrix products; in fp32 with or without TF32."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            return product_rate(DTYPES[dtype], self.device, self.scale.product)
        finally:
            torch.set_float32_matmul_precision(before)

    def _bandwidth(self) -> float:
        return bandwidth(self.device, self.scale.copy_mb)

    def gigabytes(self) -> float:
        """Peak memory of the card since `forget`, in gigabytes; 0 on a CPU."""
        return round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.card else 0.0

    def forget(self) -> None:
        """Release memory, and reset the peak."""
        gc.collect()
        if self.card:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def __str__(self) -> str:
        name = torch.cuda.get_device_name() if self.card else "a CPU, rehearsed: the figures mean nothing"
        return f"{name}, torch {torch.__version__}"


def coco_lengths(count: int) -> list[int]:
    """Numbers of tokens of `count` captions, distributed like those of COCO's captions."""
    chosen = random.Random(count)
    return [min(COCO_MOST, max(COCO_LEAST, round(chosen.gauss(COCO_MEAN, COCO_SPREAD)))) for _ in range(count)]


def let_captions_end(model: torch.nn.Module, end_id: int, share: float = 0.2) -> None:
    """Change the weights so that the end token has about the probability `share` at every position.

    The last layer norm makes one number of the hidden state a constant, and the end token reads only this number. With
    a `min_length` of 8, captions then have about 12.5 tokens on average, like COCO's, but with a wider distribution:
    some reach the limit.
    """
    with torch.no_grad():
        norm, projection = model.text_decoder.ln_final, model.text_decoder.text_projection  # (W,), (W, V)
        norm.weight[0], norm.bias[0] = 0, 1
        half_variance = (len(projection) - 1) * projection[1:].var() / 2  # of the other logits
        projection[0], projection[:, end_id] = 0, 0
        projection[0, end_id] = math.log(share / (1 - share) * projection.shape[1]) + half_variance
