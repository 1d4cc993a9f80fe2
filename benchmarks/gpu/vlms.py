"""Vision-language models compared with transformers' own `generate`, in one process, with the same random weights."""

from collections.abc import Iterator

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.vlm_models import captioner as build
from benchmarks.side_by_side import seconds_of
from captioners.base import Request, SamplingConfig
from captioners.vlm.captioner import VLMCaptioner


def smolvlm(bench: Bench) -> Iterator[dict]:
    """A model with the shape of SmolVLM-500M."""
    yield from against_transformers(bench, "smolvlm")


def qwen(bench: Bench) -> Iterator[dict]:
    """A model with the shape of Qwen2.5-VL-3B."""
    yield from against_transformers(bench, "qwen2_5_vl")


def against_transformers(bench: Bench, family: str) -> Iterator[dict]:
    """Captions per second of both sides, warm, in bf16; every caption has the same number of tokens."""
    scale = bench.scale
    captioner = build(bench, family, "bf16")
    sampling = SamplingConfig(num_captions=scale.captions, top_p=0.9, max_length=scale.tokens, min_length=scale.tokens)
    shape = captioner.preprocess(captioner.family.blank()).shape
    for flight in scale.vlm_flights:
        pictures = torch.randn(flight, *shape, generator=torch.Generator().manual_seed(0))
        keyed = [Request(f"picture/{number}", picture) for number, picture in enumerate(pictures)]
        captioner.batch_size = flight

        def ours() -> None:
            count = sum(len(captioned.captions) for captioned in captioner.caption(iter(keyed), sampling))
            if count != flight * scale.captions:
                raise RuntimeError(f"{count} captions of {flight} pictures, not {scale.captions} of each")

        row = {"case": f"{family}, bf16, {flight} pictures of {shape[-2]} x {shape[-1]}"}
        for prefix, work, rounds in (("", ours, 2), ("peer_", lambda: generate(captioner, pictures, sampling), 1)):
            try:  # our first round warms up; transformers needs no warming up, because it captures no graphs
                for _ in range(rounds):
                    bench.forget()
                    seconds = seconds_of(work, bench.device)
                row |= {
                    f"{prefix}captions_per_s": flight * scale.captions / seconds,
                    f"{prefix}gigabytes": bench.gigabytes(),
                }
            except torch.OutOfMemoryError:
                row[f"{prefix}note"] = "out of memory"
        if {"captions_per_s", "peer_captions_per_s"} <= row.keys():
            row["ratio"] = row["captions_per_s"] / row["peer_captions_per_s"]
        yield row


@torch.no_grad()
def generate(captioner: VLMCaptioner, pictures: torch.Tensor, sampling: SamplingConfig) -> None:
    """Caption pictures (N, 3, H, W) by transformers' own `generate`, with as many captions and tokens as ours."""
    model = captioner.model
    ids = torch.tensor(captioner.prompt.ids, device=model.device).expand(len(pictures), -1)
    inputs = captioner.family.inputs(
        pictures.to(model.device, model.dtype), [captioner.prompt] * len(pictures), ids, torch.ones_like(ids)
    )
    new_tokens = sampling.max_length - 2  # the prompt takes the place of the start token; the last token is not drawn
    rows = model.generate(
        **inputs,
        num_return_sequences=sampling.num_captions,
        do_sample=True,
        top_p=sampling.top_p,
        top_k=0,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
    )
    if len(rows) != len(pictures) * sampling.num_captions:
        raise RuntimeError(f"transformers gave {len(rows)} captions of {len(pictures)} pictures")
