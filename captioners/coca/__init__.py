"""CoCa captioners on open_clip. `captioners.load.load_captioner` loads captioners of every kind, and can be imported from here, too."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "load_captioner":  # late: `captioners.load` imports this folder
        return import_module("captioners.load").load_captioner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
