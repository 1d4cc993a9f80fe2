"""As much of torch as tells a tensor from a module: its own types take mypy a minute."""

from typing import Any

from . import nn as nn

class Tensor: ...
class OutOfMemoryError(RuntimeError): ...

def __getattr__(name: str) -> Any: ...
