import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captioners.coca.onednn import fast_products, linear


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (3, 5), (2, 1, 4), (801,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_a_linear_layer(shape, dtype):
    x, weight, bias = (torch.randn(size).to(dtype) for size in ((*shape, 24), (33, 24), (33,)))
    for b in (bias, None):
        exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
        ours = linear(x, weight, b)
        assert ours.dtype == dtype and ours.is_contiguous()
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5 if dtype != torch.bfloat16 else 0.2)


def test_views_are_as_good_as_tensors_of_their_own():
    x, weight = torch.randn(24, 5).T, torch.randn(24, 40).T[3:20]
    torch.testing.assert_close(linear(x, weight), x @ weight.T)


@torch.no_grad()
def test_other_peoples_modules_use_it_and_give_the_same(monkeypatch):
    calls = []
    monkeypatch.setattr("captioners.coca.onednn.linear", lambda *args: calls.append(1) or linear(*args))
    attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    mlp = nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 16, bias=False)).eval()
    x, queries = torch.randn(2, 6, 16), torch.randn(2, 3, 16)
    expected = [mlp(attention(q, x, x, need_weights=False)[0]) for q in (x, queries)]
    with fast_products():
        results = [mlp(attention(q, x, x, need_weights=False)[0]) for q in (x, queries)]
    assert len(calls) == 9  # queries, keys and values in one or two, the output, the two layers
    torch.testing.assert_close(results, expected)
    mlp(x)
    assert len(calls) == 9
    assert torch.backends.mha.get_fastpath_enabled()


def test_gradients_are_the_same():
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 5, bias=False))
    x = torch.randn(3, 7, 16, requires_grad=True)
    expected = torch.autograd.grad(mlp(x).square().sum(), [x, *mlp.parameters()])
    used = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("captioners.coca.onednn.linear", lambda *args: used.append(1) or linear(*args))
        with fast_products():
            results = torch.autograd.grad(mlp(x).square().sum(), [x, *mlp.parameters()])
    assert len(used) == 2 + 4  # two layers, and the gradients of their inputs and weights
    torch.testing.assert_close(results, expected)
