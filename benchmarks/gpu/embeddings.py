"""Embeddings of views and texts, as `capsmith reinforce` computes them with a teacher."""

from collections.abc import Iterator

import open_clip
import torch
from open_clip.model import CLIP
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.bench import Bench
from benchmarks.side_by_side import seconds_of
from captioners.weights import DTYPES
from generate.reinforce.teachers import Teacher

ARCHITECTURE, BATCH = "ViT-L-14", 256
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
WORDS = (
    "a",
    "red",
    "dog",
    "runs",
    "over",
    "the",
    "green",
    "grass",
    "near",
    "two",
    "people",
    "with",
    "large",
    "umbrellas",
)


def embeddings(bench: Bench) -> Iterator[dict]:
    """Embeddings per second of views and of texts, in bf16 and fp32."""
    views, texts = bench.scale.embedded
    cfg = TINY if bench.rehearse else open_clip.get_model_config(ARCHITECTURE)
    torch.manual_seed(0)
    with torch.device(bench.device):
        model = CLIP(**cfg).eval()
    side = cfg["vision_cfg"]["image_size"]
    pixels = torch.randint(256, (views, 3, side, side), dtype=torch.uint8)
    captions = [
        " ".join(WORDS[(number * place + place) % len(WORDS)] for place in range(3, 12)) for number in range(texts)
    ]
    flops = 0.0
    for dtype in ("bf16", "fp32"):
        teacher = Teacher(
            ARCHITECTURE,
            model.to(DTYPES[dtype]),
            open_clip.get_tokenizer(ARCHITECTURE),
            size=(side, side),
            mean=open_clip.OPENAI_DATASET_MEAN,
            std=open_clip.OPENAI_DATASET_STD,
            dimension=cfg["embed_dim"],
            logit_scale=100.0,
            logit_bias=None,
            weights_sha256="0" * 64,
            device=bench.device,
        )
        if not flops:
            with FlopCounterMode(display=False) as counter:
                teacher.embed(pixels[:BATCH], [], BATCH)
            flops = counter.get_total_flops() / len(pixels[:BATCH])
        teacher.embed(pixels[:BATCH], captions[:BATCH], BATCH)  # warms up
        bench.forget()
        of_views = seconds_of(lambda: teacher.embed(pixels, [], BATCH), bench.device)
        of_texts = seconds_of(lambda: teacher.embed(pixels[:0], captions, BATCH), bench.device)
        yield {
            "case": f"{ARCHITECTURE}, {dtype}, {views} views and {texts} texts",
            "views_per_s": views / of_views,
            "texts_per_s": texts / of_texts,
            "share_of_ceiling": flops * views / of_views / bench.rate(dtype),
            "gigabytes": bench.gigabytes(),
        }
