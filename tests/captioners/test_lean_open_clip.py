"""Each test runs in a process of its own, because an import happens once in a process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from captioners.weights import WithoutDrawing

HEAVY = ("timm", "transformers", "torch._dynamo", "sympy")
ROOT = Path(__file__).parents[2]
VISION = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
TIMM = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 32}


def result_of(code: str) -> str:
    """The last line that a fresh process prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def heavy_after(code: str) -> list[str]:
    """The names in HEAVY, and aiohttp, that are imported after this code."""
    code += f"\nimport json, sys\nprint(json.dumps([name for name in {(*HEAVY, 'aiohttp')} if name in sys.modules]))"
    return json.loads(result_of(code))


def test_open_clip_is_imported_without_what_captioners_do_not_need():
    assert heavy_after("from captioners.lean_open_clip import import_open_clip\nimport_open_clip()") == []
    assert heavy_after("import open_clip") == list(HEAVY)


def test_a_first_caption_imports_nothing_that_it_does_not_need(tmp_path):
    arguments = ["generate", "--model", "coca_tiny", "--input", "scenes:test,n=2", "--output", str(tmp_path / "out")]
    arguments += ["--num-workers", "0"]
    assert heavy_after(f"import capsmith\nassert capsmith.main({arguments!r}) == 0") == []


@pytest.mark.parametrize(
    "vision, text, kind",
    [
        (TIMM, TEXT, "TimmModel"),
        (VISION, {"hf_model_name": "BERT", "hf_model_pretrained": False, "context_length": 8}, "HFTextEncoder"),
    ],
)
def test_towers_of_other_libraries_can_still_be_built(tmp_path, vision, text, kind):
    bert = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps(bert | {"intermediate_size": 32, "vocab_size": 64}))
    if "hf_model_name" in text:
        text = text | {"hf_model_name": str(tmp_path / "bert")}
    config = tmp_path / "small.json"
    config.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    code = f"""
from captioners.lean_open_clip import import_open_clip
LEAN
import open_clip
open_clip.add_model_config({str(config)!r})
for _ in range(2):
    model = open_clip.create_model("small", pretrained_text=False)
towers = [type(module).__name__ for module in model.modules() if type(module).__name__ == {kind!r}]
print(towers, sum(weight.numel() for weight in model.parameters()))
"""
    lean = result_of(code.replace("LEAN", "import_open_clip()"))
    assert lean.startswith(f"['{kind}'] ")
    assert lean == result_of(code.replace("LEAN", ""))


def test_torchvision_asks_torchs_compiler_when_it_needs_it():
    code = """
from captioners.lean_open_clip import import_open_clip
import_open_clip()
import sys, torchvision
from torch._dynamo.utils import is_compile_supported
devices = ("cpu", "cuda", "meta")
stand_in = sys.modules["torchvision.ops.roi_align"].is_compile_supported
assert stand_in is not is_compile_supported
print([stand_in(device) for device in devices] == [is_compile_supported(device) for device in devices])
"""
    assert result_of(code) == "True"


def test_what_is_imported_already_stays():
    code = """
import timm, torch._dynamo.utils, sys
from captioners.lean_open_clip import import_open_clip
before = sys.modules["timm"], sys.modules["torch._dynamo.utils"]
import_open_clip()
print(before == (sys.modules["timm"], sys.modules["torch._dynamo.utils"]), sys.modules.get("transformers"))
"""
    assert result_of(code) == "True None"


def test_models_are_built_without_drawing():
    state = torch.get_rng_state()
    with WithoutDrawing():
        layer = nn.Linear(3, 4)
        nn.init.constant_(layer.weight, 5)
        upper = torch.ones(3, 3).triu_(1)
        with torch.device("meta"):
            assert torch.ones(3, 3).triu_(1).is_meta
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(layer.weight, torch.full((4, 3), 5.0))
    assert upper.tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
