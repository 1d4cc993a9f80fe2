"""CoCa captioners on open_clip.

`load_captioner`, which loads captioners of every kind, can also be imported from here.
"""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "load_captioner":  # late: `captioners.load` imports this folder
        return import_module("captioners.load").load_captioner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
