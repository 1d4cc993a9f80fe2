"""Tests of vision-language models that need a GPU; test_vlm_decode.py tests the same paths on the CPU."""

import pytest
import torch

from captioners.base import SamplingConfig
from captioners.vlm.load import load_vlm

from .models import FAMILIES, PAD, pictures_for

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("family", FAMILIES)
def test_captions_on_a_gpu_are_those_of_the_cpu(family, folder_of, captioner_of):
    torch.backends.cuda.matmul.allow_tf32 = False
    on_gpu, on_cpu, sampling = (
        load_vlm(folder_of(family), device="cuda"),
        captioner_of(family),
        SamplingConfig(num_captions=3),
    )
    pairs = [
        (caption.text, other.text)
        for ours, theirs in zip(
            on_gpu.caption(pictures_for(on_gpu, 8), sampling),
            on_cpu.caption(pictures_for(on_cpu, 8), sampling),
            strict=True,
        )
        for caption, other in zip(ours.captions, theirs.captions, strict=True)
    ]
    assert sum(caption == other for caption, other in pairs) >= 0.95 * len(pairs)


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_on_a_gpu_are_one_graph_and_wait_for_nothing(family, folder_of):
    captioner = load_vlm(folder_of(family), device="cuda")
    with torch.no_grad():
        _, rows = captioner._begin(captioner._rules(SamplingConfig(max_length=20)))(pictures_for(captioner))
        rows.extend(torch.full((4, 1), PAD, device="cuda"))
        rows.keep(torch.arange(4, device="cuda").repeat_interleave(3))
        tokens = torch.full((12, 1), 200, device="cuda")
        for _ in range(2):
            rows.extend(tokens)  # a warm-up, then the capture
        graph = rows.graph
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):
                rows.extend(tokens)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert graph is not None and rows.graph is graph
