"""Tests that need a GPU; test_draw.py and test_sampling.py test the same paths on the CPU."""

import pytest
import torch

from captioners.base import Request, SamplingConfig
from captioners.coca.decode import Decoding
from captioners.decoding.device import stack
from captioners.decoding.sampling import exponentials, race_side, sample_key, sample_top_p
from captioners.load import load_captioner

choose_by_kernel = pytest.importorskip(
    "captioners.decoding.choice_kernel", reason="needs a CUDA device, and Triton"
).choose_by_kernel
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture
def both(captioner, tmp_path):
    """The same captioner on the CPU and on the GPU."""
    captioner.save(tmp_path, "tiny")
    return load_captioner(str(tmp_path)), load_captioner(str(tmp_path), device="cuda")


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(num_captions=3),
        SamplingConfig(num_captions=3, top_p=0.3, temperature=1.5),
        SamplingConfig(strategy="greedy"),
        SamplingConfig(strategy="beam", num_captions=3, num_beams=6, num_beam_groups=3, diversity_penalty=1.0),
    ],
    ids=str,
)
def test_captions_on_a_gpu_are_those_of_the_cpu(both, pictures, sampling):
    torch.backends.cuda.matmul.allow_tf32 = False
    on_cpu, on_gpu = (list(captioner.caption(pictures * 8, sampling, similarity=True)) for captioner in both)
    pairs = [
        (caption, other)
        for ours, theirs in zip(on_cpu, on_gpu, strict=True)
        for caption, other in zip(ours.captions, theirs.captions, strict=True)
    ]
    assert sum(caption.text == other.text for caption, other in pairs) >= 0.95 * len(pairs)
    for ours, theirs in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(ours.image_embedding, theirs.image_embedding, atol=1e-4, rtol=0)


def test_a_step_waits_for_nothing(both, pictures):
    """From a launch to the next check for ended captions, the host never waits for the device."""
    _, captioner = both
    list(
        captioner.caption(
            [Request(f"{key} {i}", picture) for i in range(4) for key, picture, _ in pictures],
            SamplingConfig(num_captions=3),
        )
    )
    [slots] = captioner._free_slots
    torch.cuda.set_sync_debug_mode("error")
    try:
        slots.begin(
            list(range(slots.group_size)),
            first_number=0,
            keys="abcd"[: slots.group_size],
            pictures=stack([picture for _, picture, _ in pictures[: slots.group_size]], slots.device),
            first_index=0,
        )
        for _ in range(8):
            slots.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_run_captures_its_graphs_once(both, pictures, monkeypatch):
    """More pictures than slots, in several calls, and the same pictures with other draws."""
    captures, graph = [], torch.cuda.graph
    monkeypatch.setattr(torch.cuda, "graph", lambda *args, **options: captures.append(1) or graph(*args, **options))
    captioner = both[1]
    captioner.batch_size = 16
    for first in (0, 3):
        list(
            captioner.caption(
                [Request(f"{key} {i}", picture) for i in range(9) for key, picture, _ in pictures],
                SamplingConfig(),
                first_index=first,
            )
        )
    assert len(captures) == 2  # how slots begin, and a step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_steps_are_open_clips_forward(both, pictures, dtype):
    """With the attention kernels, also for captions of unequal length and for restarted slots."""
    model = both[1].model.to(dtype)
    images = torch.stack([both[1].normalise(picture) for _, picture, _ in pictures]).to("cuda", dtype)
    rows = torch.arange(len(images), device="cuda").repeat_interleave(3)
    tokens = torch.randint(3, 290, (len(rows), 12), device="cuda")
    with torch.no_grad():
        expected = model(images[rows], tokens, output_labels=False)["logits"].float()
        image_tokens = model._encode_image(images)[1]
        decoding = Decoding(model, image_tokens, limit=16)
        decoding.keep(rows)
        for i in range(12):
            if i == 6:
                decoding.restart(torch.tensor([2], device="cuda"), image_tokens[2:3])
            fed = torch.full_like(rows, i)
            fed[6:9] = i % 6
            logits = decoding.step(tokens.gather(1, fed[:, None]), 16)[:, 0].float()
            difference = logits - expected[torch.arange(len(rows)), fed]
            assert difference.abs().max() <= (1e-3 if dtype == torch.float32 else 0.1 * expected.std())


def test_the_kernel_chooses_what_the_cpu_chooses():
    """A million draws from logits of CLIP's vocabulary: 99.99 % are the same; rounding may decide the others."""
    same, sampling, banned = 0, SamplingConfig(), torch.tensor([0, 1], device="cuda")
    logits = 3 * torch.randn(1000, 49408, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    weights = logits.softmax(-1).index_fill_(1, banned, 0)
    keys = torch.tensor([sample_key(0, str(row)) for row in range(len(logits))], device="cuda")
    draws, side = torch.arange(1000, device="cuda") % 5, race_side(49408)
    for position in range(5, 1005):
        lengths = torch.full_like(draws, position)
        tokens, logprobs = choose_by_kernel(
            logits, logits.clone(), sampling, keys=keys, draws=draws, lengths=lengths, banned=banned, end_id=2
        )
        expected = sample_top_p(
            weights,
            sampling.top_p,
            lambda rows, attempt: exponentials(keys[rows], draws[rows], lengths[rows], attempt=attempt, side=side),
        )
        same += (tokens == expected).sum().item()
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0], atol=1e-4, rtol=1e-4)
    assert same >= 999_900
