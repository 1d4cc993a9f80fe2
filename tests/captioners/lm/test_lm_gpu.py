"""Tests of language models that need a GPU; test_lm.py tests the same paths on the CPU."""

import pytest
import torch

from captioners.base import Request, SamplingConfig
from captioners.load import load_captioner

from .models import save

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICE = "cuda"


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "falcon"])
def test_captions_on_a_gpu_are_those_of_the_cpu(family, tmp_path):
    """Falcon's steps are no CUDA graphs."""
    torch.backends.cuda.matmul.allow_tf32 = False
    folder, sampling = save(tmp_path / family, family).as_posix(), SamplingConfig(num_captions=3, max_length=24)
    requests = [Request(str(number), None, "a red cat " * (1 + number % 3)) for number in range(12)]
    texts = []
    for device in ("cpu", DEVICE):
        captioner = load_captioner(folder, device=device)
        captions = [caption for captioned in captioner.caption(requests, sampling) for caption in captioned.captions]
        texts.append([caption.text for caption in captions])
    assert sum(ours == theirs for ours, theirs in zip(*texts, strict=True)) >= 0.95 * 36
