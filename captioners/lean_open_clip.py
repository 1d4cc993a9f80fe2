"""Import open_clip without what captioners do not need of it, which takes half of the time of a start.

open_clip imports timm and transformers, for towers that only some CLIP models have. torchvision, and torch itself when
it builds a model on the meta device, import torch's compiler.
"""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

TOWERS = {"timm_model": "TimmModel", "hf_model": "HFTextEncoder"}  # module of open_clip -> its class of towers


def import_open_clip() -> None:
    """Import open_clip without timm, transformers and torch's compiler, unless it is already imported.

    The first model with such a tower imports its library. Only the method `generate` of open_clip's CoCa, which
    captioners do not use, then says that transformers is missing.
    """
    if "open_clip" in sys.modules:
        return
    importlib.import_module("torch")  # before its compiler is replaced
    compiler = SimpleNamespace(is_compile_supported=_is_compile_supported)
    with _replaced({"torch._dynamo.utils": compiler, "timm": None, "transformers": None}):
        towers = importlib.import_module("open_clip.model")
    for module, tower in TOWERS.items():
        setattr(towers, tower, _Late(module, tower))


def without_compiler() -> AbstractContextManager[None]:
    """A context in which torch computes on the meta device without its compiler, unless that is already imported.

    torch asks its compiler only to mark functions that may not be compiled.
    """
    return _replaced({"torch._dynamo": SimpleNamespace(disable=lambda function, *_, **__: function)})


@contextmanager
def _replaced(modules: Mapping[str, Any]) -> Iterator[None]:
    """A context in which imports find these modules, if not imported yet; None stands for a module that is missing."""
    names = [name for name in modules if name not in sys.modules]
    sys.modules.update({name: modules[name] for name in names})
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _is_compile_supported(device: str) -> bool:
    """What torch's compiler says, which is imported now."""
    return importlib.import_module("torch._dynamo.utils").is_compile_supported(device)


class _Late:
    """Stands for a class of towers until the first one is built, which imports the tower's library."""

    def __init__(self, module: str, tower: str):
        self.module, self.tower = module, tower

    def __call__(self, *args: Any, **options: Any) -> Any:
        tower = getattr(importlib.reload(importlib.import_module(f"open_clip.{self.module}")), self.tower)
        setattr(importlib.import_module("open_clip.model"), self.tower, tower)
        return tower(*args, **options)
