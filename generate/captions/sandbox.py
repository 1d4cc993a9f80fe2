"""What templates and expressions may compute: the sandbox of Jinja2, with filters and arithmetic that are bounded."""

import json
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import StrictUndefined, nodes, pass_context
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from imagetext.limits import INSTRUCTION, TEMPLATE_STEPS

ARITHMETIC = {  # allowed in expressions: the filter that replaces the operator, and what it computes
    nodes.Add: ("_plus", operator.add),
    nodes.Sub: ("_minus", operator.sub),
    nodes.Mul: ("_times", operator.mul),
    nodes.Div: ("_over", operator.truediv),
}
LOOP_FIELDS = ("index", "index0", "revindex", "revindex0", "first", "last", "length")
TESTS = ("defined", "undefined", "string", "number", "mapping", "sequence", "in", "eq", "ne", "lt", "le", "gt", "ge")
STEPS = "_steps"  # the name of the counter of steps in a rendering


class Steps:
    """Counts the steps of all loops in one rendering."""

    count = 0

    def add(self, steps: int) -> None:
        self.count += steps
        if self.count > TEMPLATE_STEPS:
            raise ValueError(f"its loops take more than {TEMPLATE_STEPS:,} steps")


class Texts(tuple[str, ...]):
    """Captions; a template that prints them prints the one with the index `shown`."""

    shown: int = 0

    def __str__(self) -> str:
        return self[self.shown]


class Missing(StrictUndefined):
    """A value that the record lacks; every use of it is an error, except a test whether it is defined."""

    @property
    def _undefined_message(self) -> str:
        return self._undefined_hint or f"the record has no {self._undefined_name}"


def bounded(value: Any, name: str) -> Any:
    """Return the value for a template; if it is larger than an instruction, a Missing that says so when it is used."""
    if isinstance(value, str) and len(value) <= INSTRUCTION:  # the usual case
        return value
    stack, size = [value], 0
    while stack:
        part = stack.pop()
        size += 1 + (len(part) if isinstance(part, str | list | tuple | dict) else 0)
        if size > INSTRUCTION:
            return Missing(hint=f"{name} holds more than {INSTRUCTION:,} characters")
        if isinstance(part, dict):
            stack += (*part, *part.values())
        elif isinstance(part, list | tuple):
            stack += part
    return value


def _text(value: Any) -> str:
    """Return the value as it appears in an instruction: a text as it is, anything else as JSON."""
    if isinstance(value, Texts | str | Undefined):
        return str(value)
    if value is None or isinstance(value, LoopContext):
        raise ValueError("a value is null; give it a default")
    return json.dumps(value, ensure_ascii=False, default=str)


def _replace(value: Any, old: str, new: str) -> str:
    text = _text(value)
    if len(text) + text.count(old) * len(new) > INSTRUCTION:
        raise ValueError(f"replace gives more than {INSTRUCTION:,} characters")
    return text.replace(old, new)


def _join(value: Iterable[Any], between: str = "") -> str:
    texts = [_text(item) for item in value]
    if sum(map(len, texts)) + len(between) * len(texts) > INSTRUCTION:
        raise ValueError(f"join gives more than {INSTRUCTION:,} characters")
    return between.join(texts)


def _concat(value: Any, other: Any) -> str:
    return _join((value, other))


def _default(value: Any, instead: Any = "") -> Any:
    return instead if isinstance(value, Undefined) else value


def _tojson(value: Any) -> str:
    text = json.dumps(str(value) if isinstance(value, Texts) else value, ensure_ascii=False, default=_text)
    if len(text) > INSTRUCTION:  # tojson of tojson escapes again, and so makes a text ever longer
        raise ValueError(f"tojson gives more than {INSTRUCTION:,} characters")
    return text


def _on_numbers(operation: Callable[[float, float], float]) -> Callable[[Any, Any], float]:
    def number(value: Any) -> float:
        if not isinstance(value, int | float | Undefined):
            raise ValueError(f"{_text(value)[:100]!r} is no number")
        return float(value)  # floats all have the same size; integers could grow

    return lambda left, right: operation(number(left), number(right))


@pass_context
def _counted(context: Context, value: Iterable[Any], steps: int) -> Iterator[Any]:
    counter = context[STEPS]
    for item in value:
        counter.add(steps)
        yield item


FILTERS = {
    "oneline": lambda value: " ".join(_text(value).split()),
    "first_words": lambda value, count: " ".join(_text(value).split()[:count]),
    "trim": lambda value: _text(value).strip(),
    "lower": lambda value: _text(value).lower(),
    "upper": lambda value: _text(value).upper(),
    "capitalize": lambda value: _text(value).capitalize(),
    "title": lambda value: _text(value).title(),
    "replace": _replace,
    "join": _join,
    "default": _default,
    "first": lambda value: next(iter(value)),
    "last": lambda value: value[-1],
    "length": len,
    "tojson": _tojson,
}


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox in which a name after a dot is a field of the record, never an attribute of a Python object."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, LoopContext) and attribute in LOOP_FIELDS:
            return getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Undefined):
            return obj  # keeps the message about the value that is missing
        value = None
        if isinstance(obj, dict) and isinstance(argument, str):
            value = obj.get(argument)
        elif isinstance(obj, Texts | list | tuple | str) and isinstance(argument, int):
            value = obj[argument] if -len(obj) <= argument < len(obj) else None
        if isinstance(value, Undefined):
            return value
        if value is None or value != value:  # null, or NaN, which tables write for null
            return self.undefined(hint=f"the record has no such value as {argument}")
        return value


ENVIRONMENT = _Environment(
    undefined=Missing, finalize=_text, trim_blocks=True, lstrip_blocks=True, autoescape=False, cache_size=0
)
ENVIRONMENT.globals.clear()
ENVIRONMENT.filters = {
    **FILTERS,
    **{name: _on_numbers(operation) for name, operation in ARITHMETIC.values()},
    "_counted": _counted,
    "_concat": _concat,
}
ENVIRONMENT.tests = {name: ENVIRONMENT.tests[name] for name in TESTS}
