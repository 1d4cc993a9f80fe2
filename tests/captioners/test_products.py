"""The choice of the library of matrix products: which is faster, what is kept of it, and who agrees with whom."""

import json
import os

import pytest
import torch
import torch.nn.functional as F

from captioners.base import Request, SamplingConfig
from captioners.coca import onednn, products
from captioners.coca.products import Timing, _keep, choose_products, linear_by, measure
from captioners.load import load_captioner


@pytest.fixture(scope="module")
def model():
    return load_captioner("coca_tiny", products="torch").model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "capsmith" / "products"


@pytest.fixture
def measured(monkeypatch):
    """A list of what measurements will find, the next one last; an empty list means that none is expected."""
    timings = [Timing(9.0, 1.0), Timing(1.0, 9.0)]
    monkeypatch.setattr(products, "measure", lambda weights: timings.pop())
    return timings


@pytest.mark.parametrize("torch_ms, onednn_ms, expected", [(2, 1, "onednn"), (1, 2, "torch"), (1.05, 1, "torch")])
def test_the_faster_library_is_chosen_and_a_tie_goes_to_torch(torch_ms, onednn_ms, expected):
    assert Timing(torch_ms, onednn_ms).faster == expected


@pytest.mark.parametrize("slow, expected", [("torch", "onednn"), ("onednn", "torch")])
def test_a_library_that_is_slow_is_measured_as_slow(monkeypatch, slow, expected):
    """Products of four blocks are measured by a clock that only the slow library moves much."""
    now = [0.0]
    monkeypatch.setattr(products.time, "perf_counter", lambda: now[0])

    def linear_on_the_clock(library):
        def linear(x, weight, bias):
            now[0] += (0.02 if library == slow else 0.001) * weight.shape[0]
            return linear_by(library)(x, weight, bias)

        return linear

    monkeypatch.setattr(products, "linear_by", linear_on_the_clock)
    random_state = torch.get_rng_state()
    timing = measure([torch.ones(3, 8), torch.ones(2, 8), torch.ones(3, 8)])
    assert timing.faster == expected
    assert sorted(timing) == pytest.approx([1000 * 0.001 * (3 + 2), 1000 * 0.02 * (3 + 2)])
    assert torch.equal(torch.get_rng_state(), random_state)


def test_two_runs_on_a_machine_agree_although_they_would_measure_differently(model, cache, measured):
    first = choose_products(model)
    assert first == choose_products(model) and first[0] == "torch" and len(measured) == 1
    (file,) = cache.iterdir()
    record = json.loads(file.read_text())
    assert (record["torch_ms"], record["onednn_ms"]) == (1.0, 9.0)
    assert {"processor", "torch", "threads", "weights"} < record.keys()


def test_of_runs_that_measure_at_the_same_time_the_first_decides(tmp_path):
    path, timings = tmp_path / "new" / "file.json", [Timing(1.0, 9.0), Timing(9.0, 1.0)]
    assert [_keep(path, timing, machine={}) for timing in timings] == [timings[0]] * 2
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("change", ["threads", "version", "processor"])
def test_another_machine_is_measured_anew(model, cache, measured, monkeypatch, change):
    choose_products(model)
    patches = {
        "threads": (torch, "get_num_threads", lambda: 77),
        "version": (torch, "__version__", "99.0"),
        "processor": (products, "processor", lambda: {"model name": "another"}),
    }
    monkeypatch.setattr(*patches[change])
    assert choose_products(model)[0] == "onednn" and not measured


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"torch_ms": "x", "onednn_ms": 1}', "\x00\xff"])
def test_a_damaged_file_is_replaced(model, cache, measured, damage):
    choose_products(model)
    (file,) = cache.iterdir()
    file.write_text(damage)
    assert choose_products(model)[0] == "onednn"
    assert choose_products(model)[0] == "onednn" and not measured


@pytest.mark.parametrize("obstacle", ["file", "rights"])
def test_a_cache_that_cannot_be_written_is_no_error(model, tmp_path, measured, monkeypatch, obstacle):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if obstacle == "file":
        (tmp_path / "cache").write_text("")
    else:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links here")))
    assert [choose_products(model)[0] for _ in range(2)] == ["torch", "onednn"]


def test_without_onednn_there_is_nothing_to_measure(model, cache, measured, monkeypatch):
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    assert choose_products(model)[0] == "torch" and len(measured) == 2 and not cache.exists()


@pytest.mark.parametrize("given", ["torch", "onednn", None])
def test_a_captioner_decodes_by_its_library(cache, measured, monkeypatch, given):
    calls = []
    monkeypatch.setattr(onednn, "linear", lambda *args, linear=onednn.linear: calls.append(1) or linear(*args))
    captioner = load_captioner("coca_tiny", products=given)
    assert captioner.products == (given or "torch")
    name = "oneDNN" if given == "onednn" else "torch's own library"
    assert captioner.description.split("\n")[-1].startswith(f"float32 products: by {name}")
    sampling = SamplingConfig(num_captions=1, max_length=5, min_length=0)
    (result,) = captioner.caption([Request("a", torch.zeros(3, 56, 56))], sampling, similarity=True)
    assert result.captions and bool(calls) == (given == "onednn")


@pytest.mark.parametrize("options", [{"dtype": "bf16"}, {"device": "meta"}])
def test_nothing_is_measured_where_there_are_no_float32_products_on_a_cpu(cache, measured, options):
    captioner = load_captioner("coca_tiny", **options)
    assert len(measured) == 2 and "float32 products" not in captioner.description


def test_libraries_differ_in_rounding_only():
    x, weight, bias = torch.randn(5, 24), torch.randn(33, 24), torch.randn(33)
    torch.testing.assert_close(linear_by("onednn")(x, weight, bias), linear_by("torch")(x, weight, bias))
    assert linear_by("torch") is F.linear
