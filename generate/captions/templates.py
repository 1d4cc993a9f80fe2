"""Templates of instructions, and expressions: Jinja2's sandbox with what is needed to say something of a record, bounded.

There are no calls in them, and no arithmetic but that of numbers in expressions, so nothing can grow but by a filter, `~` and loops,
and these are counted. All is bounded by counts, never by a clock, so that a template gives the same on every machine.
"""

import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta, nodes, pass_context
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from imagetext.limits import INSTRUCTION, TEMPLATE_NODES, TEMPLATE_STEPS

ALLOWED = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign),
    *(nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Keyword, nodes.Test),
    *(nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.CondExpr, nodes.Concat),
    *(nodes.List, nodes.Tuple),
)
NUMBERS = {  # what an expression may have of arithmetic
    nodes.Add: ("_plus", operator.add),
    nodes.Sub: ("_minus", operator.sub),
    nodes.Mul: ("_times", operator.mul),
    nodes.Div: ("_over", operator.truediv),
}
CALLED = {nodes.Call: "calls", nodes.Mul: "*", nodes.Add: "+ (~ puts texts together)", nodes.Pow: "**"}
OF_LOOP = ("index", "index0", "revindex", "revindex0", "first", "last", "length")
TESTS = ("defined", "undefined", "string", "number", "mapping", "sequence", "in", "eq", "ne", "lt", "le", "gt", "ge")
STEPS = "_steps"  # the name of the render's counter
OF_TEMPLATES = "a template has names, if, for, set, ~ and filters"
OF_EXPRESSIONS = "an expression has names, and, or, not, in, comparisons, if, ~, + - * / of numbers, and filters"
VALUE = "value"  # the name that an expression's value gets


class Template:
    """An instruction's template; `names` are those that it takes from the record, `needed` those of which it never asks whether they are there.

    Raises: ValueError, which says what is wrong with it and in which line.
    """

    def __init__(self, source: str):
        if len(source) > INSTRUCTION:
            raise ValueError(f"is a template of {len(source):,} characters, more than {INSTRUCTION:,}")
        try:
            tree = ENVIRONMENT.parse(source)
            _check(tree)
            self.names: frozenset[str] = frozenset(meta.find_undeclared_variables(tree))
            self.needed = self.names.difference(_asked_for(tree))
            self._template = ENVIRONMENT.from_string(_Counted().visit(tree))
        except TemplateError as error:
            raise ValueError(f"line {getattr(error, 'lineno', 1)}: {error.message}") from error
        except (RecursionError, MemoryError, SyntaxError) as error:  # of the parser, or of Python's
            raise ValueError("is a template that is nested too deep") from error

    def render(self, values: Mapping[str, Any]) -> str:
        """The instruction; ValueError, with the reason, where a name has no value, or the template says too much."""
        parts, length = [], 0
        try:
            for part in self._template.generate({**values, STEPS: _Steps()}):
                length += len(part)
                if length > INSTRUCTION:
                    raise ValueError(f"has more than {INSTRUCTION:,} characters")
                parts.append(part)
        except Exception as error:  # whatever a value of this kind does not bear
            raise ValueError(f"instruction: {error}") from error
        return "".join(parts)


class Expression:
    """An expression over a record; `names` and `needed` as a template has them. Beside what templates have, it has numbers' + - * /.

    Raises: ValueError, which says what is wrong with it.
    """

    def __init__(self, source: str):
        if len(source) > INSTRUCTION:
            raise ValueError(f"is an expression of {len(source):,} characters, more than {INSTRUCTION:,}")
        try:
            parser = Parser(ENVIRONMENT, source, state="variable")
            said = parser.parse_expression()
            if not parser.stream.eos:
                raise TemplateSyntaxError(f"goes on after its end: {parser.stream.current}", 1)
            tree = nodes.Template([nodes.Assign(nodes.Name(VALUE, "store"), said, lineno=1)], lineno=1)
            tree.set_environment(ENVIRONMENT)
            _check(tree, (*ALLOWED, *NUMBERS), OF_EXPRESSIONS)
            self.source = source
            self.names: frozenset[str] = frozenset(meta.find_undeclared_variables(tree))
            self.needed = self.names.difference(_asked_for(tree))
            self._template = ENVIRONMENT.from_string(_Counted().visit(tree))
        except TemplateError as error:
            raise ValueError(error.message) from error
        except (RecursionError, MemoryError, SyntaxError) as error:
            raise ValueError("is an expression that is nested too deep") from error

    def value(self, values: Mapping[str, Any]) -> Any:
        """What it comes to; ValueError, with the reason, where a name has no value or one that does not fit."""
        context = self._template.new_context(dict(values))
        try:
            for _ in self._template.root_render_func(context):
                pass
            found = context.vars[VALUE]
            if isinstance(found, Undefined):
                str(found)  # raises what is missing
            return found
        except Exception as error:  # whatever a value of this kind does not bear
            raise ValueError(str(error)) from error


# ---- what a template may have ------------------------------------------------------------------------------------


def _check(tree: nodes.Template, allowed: tuple[type[nodes.Node], ...] = ALLOWED, has: str = OF_TEMPLATES) -> None:
    """Raises ValueError for the first thing in the template that is none of those that are bounded."""
    everything = list(tree.find_all(nodes.Node))
    if len(everything) > TEMPLATE_NODES:
        raise ValueError(f"is a template of {len(everything):,} parts, more than {TEMPLATE_NODES:,}")
    for node in everything:
        where = f"line {node.lineno}"
        if not isinstance(node, allowed) or isinstance(node, nodes.For) and node.recursive:
            what = CALLED.get(type(node), type(node).__name__.lower())
            raise ValueError(f"{where}: no {what}: {has}")
        if isinstance(node, nodes.Name) and (node.name.startswith("_") or node.name == "self"):
            raise ValueError(f"{where}: {node.name}: is no name of a record's")
        if isinstance(node, nodes.Filter | nodes.Test):
            kind, known = ("filter", FILTERS) if isinstance(node, nodes.Filter) else ("test", TESTS)
            if node.name not in known:
                raise ValueError(f"{where}: no {kind} {node.name}; there is {', '.join(known)}")
        if isinstance(node, nodes.List) or isinstance(node, nodes.Tuple) and node.ctx == "load":
            if not all(isinstance(item, nodes.Const) for item in node.items):
                raise ValueError(f"{where}: a list is of texts and numbers that stand in the template")


def _asked_for(tree: nodes.Template) -> set[str]:
    """The names that are tested for being there, or have a default."""
    tests = [
        node for node in tree.find_all((nodes.Test, nodes.Filter)) if node.name in ("defined", "undefined", "default")
    ]
    return {node.node.name for node in tests if isinstance(node.node, nodes.Name)}


class _Counted(NodeTransformer):
    """Loops that count what is done in them, and `~` and arithmetic as filters, which are bounded as all are."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        within = sum(
            1 for part in (*node.body, *([node.test] if node.test else [])) for _ in part.find_all(nodes.Node)
        )
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_counted", [nodes.Const(within + 1)], [], None, None, lineno=node.lineno)
        return node

    def visit_BinExpr(self, node: nodes.BinExpr) -> nodes.Expr:
        self.generic_visit(node)
        name, _ = NUMBERS[type(node)]
        return nodes.Filter(node.left, name, [node.right], [], None, None, lineno=node.lineno)

    visit_Add = visit_Sub = visit_Mul = visit_Div = visit_BinExpr

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        first, *others = node.nodes
        for other in others:
            first = nodes.Filter(first, "_then", [other], [], None, None, lineno=node.lineno)
        return first


class _Steps:
    """How many parts of a template's loops one rendering has gone through."""

    done = 0

    def add(self, steps: int) -> None:
        self.done += steps
        if self.done > TEMPLATE_STEPS:
            raise ValueError(f"its loops take more than {TEMPLATE_STEPS:,} steps")


# ---- values and filters ------------------------------------------------------------------------------------------


class Texts(tuple[str, ...]):
    """Captions, of which the one that `shown` names stands for all where they are printed."""

    shown: int = 0

    def __str__(self) -> str:
        return self[self.shown]


class Missing(StrictUndefined):
    """A value that a record lacks: whatever is done with it but asking whether it is there is an error."""

    @property
    def _undefined_message(self) -> str:
        return self._undefined_hint or f"the record has no {self._undefined_name}"


def bounded(value: Any, name: str) -> Any:
    """A record's value as a template may have it; where it is larger than an instruction, one that says so where it is used."""
    if isinstance(value, str) and len(value) <= INSTRUCTION:  # as most are
        return value
    waiting, size = [value], 0
    while waiting:
        one = waiting.pop()
        size += 1 + (len(one) if isinstance(one, str | list | tuple | dict) else 0)
        if size > INSTRUCTION:
            return Missing(hint=f"{name} holds more than {INSTRUCTION:,} characters")
        waiting += (*one, *one.values()) if isinstance(one, dict) else one if isinstance(one, list | tuple) else ()
    return value


def _text(value: Any) -> str:
    """A value as an instruction has it: what is no text as JSON."""
    if isinstance(value, Texts | str | Undefined):
        return str(value)
    if value is None or isinstance(value, LoopContext):
        raise ValueError("a value that is none")
    return json.dumps(value, ensure_ascii=False, default=str)


def _replace(value: Any, old: str, new: str) -> str:
    text = _text(value)
    if len(text) + text.count(old) * len(new) > INSTRUCTION:
        raise ValueError(f"replace gives more than {INSTRUCTION:,} characters")
    return text.replace(old, new)


def _join(value: Iterable[Any], between: str = "") -> str:
    texts = [_text(one) for one in value]
    if sum(map(len, texts)) + len(between) * len(texts) > INSTRUCTION:
        raise ValueError(f"join gives more than {INSTRUCTION:,} characters")
    return between.join(texts)


def _then(value: Any, other: Any) -> str:
    return _join((value, other))


def _default(value: Any, instead: Any = "") -> Any:
    return instead if isinstance(value, Undefined) else value


def _tojson(value: Any) -> str:
    said = json.dumps(str(value) if isinstance(value, Texts) else value, ensure_ascii=False, default=_text)
    if len(said) > INSTRUCTION:  # escapes make a text longer, again and again
        raise ValueError(f"tojson gives more than {INSTRUCTION:,} characters")
    return said


def _of_numbers(operation: Callable[[float, float], float]) -> Callable[[Any, Any], float]:
    def number(value: Any) -> float:
        if not isinstance(value, int | float | Undefined):
            raise ValueError(f"{_text(value)[:100]!r} is no number")
        return float(value)  # of which none takes more room than others

    return lambda left, right: operation(number(left), number(right))


@pass_context
def _counted(context: Context, value: Iterable[Any], steps: int) -> Iterator[Any]:
    counter = context[STEPS]
    for item in value:
        counter.add(steps)
        yield item


FILTERS = {
    "oneline": lambda value: " ".join(_text(value).split()),  # for formats of one line
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
    """The sandbox in which names after a dot are fields and nothing of Python's."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, LoopContext) and attribute in OF_LOOP:
            return getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Undefined):
            return obj  # which says what is missing wherever it is used
        found = None
        if isinstance(obj, dict) and isinstance(argument, str):
            found = obj.get(argument)
        elif isinstance(obj, Texts | list | tuple | str) and isinstance(argument, int):
            found = obj[argument] if -len(obj) <= argument < len(obj) else None
        if isinstance(found, Undefined):
            return found
        if found is None or found != found:  # null, and what tables write for it
            return self.undefined(hint=f"the record has no such value as {argument}")
        return found


ENVIRONMENT = _Environment(
    undefined=Missing, finalize=_text, trim_blocks=True, lstrip_blocks=True, autoescape=False, cache_size=0
)
ENVIRONMENT.globals.clear()
ENVIRONMENT.filters = {
    **FILTERS,
    **{name: _of_numbers(operation) for name, operation in NUMBERS.values()},
    "_counted": _counted,
    "_then": _then,
}
ENVIRONMENT.tests = {name: ENVIRONMENT.tests[name] for name in TESTS}
