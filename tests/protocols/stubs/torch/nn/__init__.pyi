from typing import Any, Callable

class Module:
    __call__: Callable[..., Any]

def __getattr__(name: str) -> Any: ...
