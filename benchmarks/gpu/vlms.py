"""Vision-language models against transformers' own `generate`, in one process, with the same random weights."""

from collections.abc import Iterator

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.vlm_models import captioner as build
from benchmarks.side_by_side import seconds_of
from captioners.base import Request, SamplingConfig
from captioners.vlm.captioner import VLMCaptioner


def smolvlm(bench: Bench) -> Iterator[dict]:
    """A model of SmolVLM-500M's shape."""
    yield from against_transformers(bench, "smolvlm")


def qwen(bench: Bench) -> Iterator[dict]:
    """A model of Qwen2.5-VL-3B's shape."""
    yield from against_transformers(bench, "qwen2_5_vl")


def against_transformers(bench: Bench, family: str) -> Iterator[dict]:
    """Captions a second of both, warm, in bf16: equally many tokens of each caption."""
    scale = bench.scale
    captioner = build(bench, family, "bf16")
    sampling = SamplingConfig(num_captions=scale.captions, top_p=0.9, max_length=scale.tokens, min_length=scale.tokens)
    shape = captioner.preprocess(captioner.family.blank()).shape
    for flight in scale.vlm_flights:
        pictures = torch.randn(flight, *shape, generator=torch.Generator().manual_seed(0))
        keyed = [Request(f"picture/{number}", picture) for number, picture in enumerate(pictures)]
        captioner.batch_size = flight

        def ours() -> None:
            found = sum(len(one.captions) for one in captioner.caption(iter(keyed), sampling))
            if found != flight * scale.captions:
                raise RuntimeError(f"{found} captions of {flight} pictures came")

        row = {"case": f"{family}, bf16, {flight} pictures of {shape[-2]} x {shape[-1]}"}
        for prefix, work, rounds in (("", ours, 2), ("peer_", lambda: generate(captioner, pictures, sampling), 1)):
            try:  # our first round warms up; transformers' captures nothing
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
    """transformers' own captions of pictures (N, 3, H, W), as many and as long."""
    model = captioner.model
    ids = torch.tensor(captioner.prompt.ids, device=model.device).expand(len(pictures), -1)
    inputs = captioner.family.inputs(
        pictures.to(model.device, model.dtype), [captioner.prompt] * len(pictures), ids, torch.ones_like(ids)
    )
    drawn = sampling.max_length - 2  # the prompt stands for the start token, and the last one is not looked for
    found = model.generate(
        **inputs,
        num_return_sequences=sampling.num_captions,
        do_sample=True,
        top_p=sampling.top_p,
        top_k=0,
        max_new_tokens=drawn,
        min_new_tokens=drawn,
    )
    if len(found) != len(pictures) * sampling.num_captions:
        raise RuntimeError(f"transformers gave {len(found)} captions of {len(pictures)} pictures")
