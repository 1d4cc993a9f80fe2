"""Training on a GPU; test_trainer.py tests the same steps on the CPU."""

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from finetune.captioner.config import FinetuneConfig
from finetune.captioner.run import run

from .ranks import gradients_of_a_step, gradients_of_a_student
from .sets import RESNET, STUDENT

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICE = "cuda"


def as_a_first_step(gradients, **settings) -> dict:
    """Call a function for gradients as if accelerate had not chosen a device and a dtype in this process before."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    return gradients(**settings)


def assert_close(on_gpu, on_cpu, tolerance):
    for kind, expected in on_cpu.items():
        for name, value in expected.items():
            other = torch.as_tensor(on_gpu[kind][name]).float().cpu()
            value = torch.as_tensor(value).float()
            differ = other != value  # not where both are -inf, as in the mask of causal attention
            assert (other - value)[differ].norm() <= tolerance * value.norm() + 1e-5, name


@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("dtype, tolerance", [("fp32", 1e-3), ("bf16", 0.1)])
def test_a_captioners_gradients_are_those_of_the_cpu(captions, dtype, tolerance):
    torch.backends.cuda.matmul.allow_tf32 = False
    expected = as_a_first_step(gradients_of_a_step, captions_per_image=captions)
    ours = as_a_first_step(gradients_of_a_step, captions_per_image=captions, device=DEVICE, dtype=dtype)
    assert_close(ours, expected, tolerance)


@pytest.mark.parametrize("model_cfg", [STUDENT, RESNET], ids=["transformer", "convolutions"])
def test_a_students_gradients_are_those_of_the_cpu(model_cfg):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    expected = as_a_first_step(gradients_of_a_student, model_cfg=model_cfg)
    assert_close(as_a_first_step(gradients_of_a_student, model_cfg=model_cfg, device=DEVICE), expected, 1e-2)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_captioner_is_trained_and_validated(lora_rank, tmp_path):
    config = FinetuneConfig(
        input=["scenes:train,n=40"],
        eval_input=["scenes:test,n=8"],
        model="coca_tiny",
        output=tmp_path / "run",
        device=DEVICE,
        batch_size=8,
        samples_seen=64,
        validate_every=32,
        lora_rank=lora_rank,
    )
    assert as_a_first_step(run, config=config) == 0
    assert (tmp_path / "run" / "open_clip_config.json").exists()
