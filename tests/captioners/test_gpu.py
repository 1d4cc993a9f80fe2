"""What only a GPU can show; the same paths are tested on the CPU in test_draw.py and test_sampling.py."""

import pytest
import torch

from captioners.base import SamplingConfig
from captioners.coca import load_captioner
from captioners.coca_decode import Decoding

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def both(captioner, tmp_path):
    """The same captioner on the CPU and on the GPU."""
    captioner.save(tmp_path, "tiny")
    return load_captioner(str(tmp_path)), load_captioner(str(tmp_path), device="cuda")


@pytest.mark.parametrize("sampling", [
    SamplingConfig(num_captions=3), SamplingConfig(num_captions=3, top_p=0.3, temperature=1.5), SamplingConfig(strategy="greedy"),
    SamplingConfig(strategy="beam", num_captions=3, num_beams=6, num_beam_groups=3, diversity_penalty=1.0)], ids=str)
def test_captions_on_a_gpu_are_those_of_the_cpu(both, pictures, sampling):
    torch.backends.cuda.matmul.allow_tf32 = False
    on_cpu, on_gpu = (list(captioner.caption(pictures * 8, sampling, similarity=True)) for captioner in both)
    pairs = [(one, other) for ours, theirs in zip(on_cpu, on_gpu, strict=True)
             for one, other in zip(ours.captions, theirs.captions, strict=True)]
    assert sum(one.text == other.text for one, other in pairs) >= 0.95 * len(pairs)
    for ours, theirs in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(ours.image_embedding, theirs.image_embedding, atol=1e-4, rtol=0)


def test_a_step_waits_for_nothing(both, pictures):
    """Between the looks at which captions have ended, the host never waits for the device."""
    _, captioner = both
    sampling = SamplingConfig(num_captions=3, min_length=16)
    list(captioner.caption(pictures, sampling))
    found = iter(captioner.caption(pictures, sampling))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning) as waits:
            list(found)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) < 16 * 3  # beginning, two looks and the end; a wait in every step and attempt would be far more


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graph_steps_are_open_clips_forward(both, pictures, dtype):
    """Captured, replayed, captured anew for other rows; the pictures' captions of unequal length included."""
    model = both[1].model.to(dtype)
    images = torch.stack([picture for _, picture in pictures]).to("cuda", dtype)
    rows = torch.arange(len(images), device="cuda").repeat_interleave(3)
    tokens = torch.randint(3, 900, (len(rows), 12), device="cuda")
    with torch.no_grad():
        expected = model(images[rows], tokens, output_labels=False)["logits"].float()
        decoding = Decoding(model, model._encode_image(images)[1], limit=16)
        decoding.keep(rows)
        for i in range(12):
            if i == 6:
                kept = torch.arange(1, len(rows), device="cuda")
                decoding.keep(kept)
                tokens, expected = tokens[kept], expected[kept]
            difference = decoding.extend(tokens[:, i : i + 1])[:, 0].float() - expected[:, i]
            assert difference.abs().max() <= (1e-3 if dtype == torch.float32 else 0.05 * expected.std())
    assert decoding.graph is not None
