"""Float32 matrix products on a CPU by oneDNN, which torch itself asks for lower precisions only.

Measured on two cores of an AMD EPYC, 80 rows by 512 x 2048 weights: 330 GFLOP/s, torch's own float32 product 175; a training
step of coca_ViT-B-32 takes two thirds of the time. The weights are read where they are.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear of x (..., K) and weight (N, K): (..., N), without gradients; as fast as can be where the weight is contiguous."""
    if x.dtype == torch.float32 and x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return F.linear(x.to_mkldnn(), weight, bias).to_dense()
    return F.linear(x, weight, bias)


class _FastProducts(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (aten.addmm.default, aten.mm.default) and not kwargs:
            *bias, a, b = args
            if a.dtype == torch.float32 and a.device.type == "cpu" and torch.backends.mkldnn.is_available():
                if b.T.is_contiguous():  # a linear layer; the bias is (N,) wherever there is one
                    return linear(a, b.T, *bias)
                if b.is_contiguous() and not bias:  # its gradients
                    return aten.mkldnn_linear_backward_input([len(a), b.shape[1]], a.to_mkldnn(), b).to_dense()
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def fast_products() -> Iterator[None]:
    """Within it products on a CPU are oneDNN's, in other people's modules and in backward passes too; Python sees each operation once.

    Pays where products are large: in training from a width of about 256 on.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it hides its linear layers
    try:
        with _FastProducts():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
