"""Compiles the Triton kernels for several generations of GPUs, without a GPU; started by test_kernels.py.

A kernel that needs more shared memory than a card has compiles, but cannot be started there.
"""

import sys
from unittest.mock import patch

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from captioners.base import SamplingConfig
from captioners.coca.block_kernels import add_norm, attend_cached, attend_images, write_keys_values
from captioners.decoding.choice_kernel import choose_by_kernel

SHARED = {75: 64, 89: 99, 90: 227}  # KiB that a block may have, by compute capability, from CUDA's guide
HEADS, TOKENS, LIMIT, VOCABULARY = 2, 255, 77, 49408


class Card:
    """What Triton asks its driver for before it compiles."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


def call_kernels(dtype: torch.dtype) -> None:
    """Call each kernel as decoding does, also with more captions and wider heads than usual."""

    def zeros(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    for depth in (64, 256):
        for captions in (5, 200):
            image_states = zeros(1, HEADS, TOKENS, depth)
            attend_images(zeros(captions, HEADS * depth), image_states, image_states)
    width = HEADS * depth
    cache, positions = zeros(5, HEADS, LIMIT, depth), zeros(5, dtype=torch.long)
    for mask in (None, zeros(5, LIMIT + 1)):
        attend_cached(zeros(5, 3 * width), cache, cache, positions=positions, mask=mask)
    add_norm(zeros(5, width), zeros(5, width), zeros(width), bias=zeros(width), epsilon=1e-5)
    write_keys_values(zeros(2, LIMIT, 2 * width), positions[:2], cache, values=cache)
    logits = zeros(5, VOCABULARY)
    ids = {"keys": zeros(5, 2, dtype=torch.long), "draws": positions, "lengths": positions, "banned": positions}
    choose_by_kernel(logits, logits, SamplingConfig(top_p=0.9, temperature=0.7), **ids, end_id=1)


def main() -> None:
    compile_and_start = JITFunction.run

    def compile_alone(kernel: JITFunction, *args, grid, warmup, **options):
        compiled = compile_and_start(kernel, *args, grid=grid, warmup=True, **options)
        kilobytes[kernel.__name__] = max(kilobytes.get(kernel.__name__, 0), compiled.metadata.shared / 1024)

    for capability, most in SHARED.items():
        driver.set_active(Card(capability))
        for dtype in (torch.float32, torch.bfloat16):
            kilobytes: dict[str, float] = {}
            with patch.object(JITFunction, "run", compile_alone):
                call_kernels(dtype)
            print(capability, dtype, kilobytes)
            if len(kilobytes) != 5 or max(kilobytes.values()) > most:
                sys.exit(f"five kernels with at most {most} KiB were expected")


if __name__ == "__main__":
    main()
