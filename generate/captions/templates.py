"""Templates of instructions, and expressions over a record: Jinja2's sandbox, reduced to what is needed, and bounded.

Neither has calls, and only expressions have arithmetic, on numbers alone. So a text can grow only by filters, `~` and
loops, and these are counted. All bounds are counts, never a time, so that a template gives the same result on every
machine.
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
ARITHMETIC = {  # allowed in expressions: the filter that replaces the operator, and what it computes
    nodes.Add: ("_plus", operator.add),
    nodes.Sub: ("_minus", operator.sub),
    nodes.Mul: ("_times", operator.mul),
    nodes.Div: ("_over", operator.truediv),
}
NODE_NAMES = {  # what messages call nodes
    nodes.Call: "calls",
    nodes.Mul: "*",
    nodes.Add: "+ (~ puts texts together)",
    nodes.Pow: "**",
}
LOOP_FIELDS = ("index", "index0", "revindex", "revindex0", "first", "last", "length")
TESTS = ("defined", "undefined", "string", "number", "mapping", "sequence", "in", "eq", "ne", "lt", "le", "gt", "ge")
STEPS = "_steps"  # the name of the counter of steps in a rendering
IN_TEMPLATES = "a template has names, if, for, set, ~ and filters"
IN_EXPRESSIONS = "an expression has names, and, or, not, in, comparisons, if, ~, + - * / of numbers, and filters"
VALUE = "value"  # the name that an expression's value is assigned to


class Template:
    """The template of an instruction.

    names: what the template takes from the record. needed: those names that it uses without a test whether the record
    has them, and without a default.

    Raises: ValueError that says what is wrong with the template and in which line.
    """

    def __init__(self, source: str):
        if len(source) > INSTRUCTION:
            raise ValueError(f"is a template of {len(source):,} characters, more than {INSTRUCTION:,}")
        try:
            tree = ENVIRONMENT.parse(source)
            _check(tree)
            self.names: frozenset[str] = frozenset(meta.find_undeclared_variables(tree))
            self.needed = self.names.difference(_tested_names(tree))
            self._template = ENVIRONMENT.from_string(_BoundedTree().visit(tree))
        except TemplateError as error:
            raise ValueError(f"line {getattr(error, 'lineno', 1)}: {error.message}") from error
        except (RecursionError, MemoryError, SyntaxError) as error:  # of Jinja's parser, or of Python's
            raise ValueError("is a template that is nested too deep") from error

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the instruction.

        Raises: ValueError, with the reason, where a name has no value, or where the instruction becomes too long.
        """
        parts, length = [], 0
        try:
            for part in self._template.generate({**values, STEPS: _Steps()}):
                length += len(part)
                if length > INSTRUCTION:
                    raise ValueError(f"has more than {INSTRUCTION:,} characters")
                parts.append(part)
        except Exception as error:  # any error that a value of the record can cause
            raise ValueError(f"instruction: {error}") from error
        return "".join(parts)


class Expression:
    """An expression over a record, with `names` and `needed` as in a Template, and + - * / of numbers.

    fields: the fields of `json` that it uses without such a test.

    Raises: ValueError that says what is wrong with the expression.
    """

    def __init__(self, source: str):
        if len(source) > INSTRUCTION:
            raise ValueError(f"is an expression of {len(source):,} characters, more than {INSTRUCTION:,}")
        try:
            parser = Parser(ENVIRONMENT, source, state="variable")
            expression = parser.parse_expression()
            if not parser.stream.eos:
                raise TemplateSyntaxError(f"goes on after its end: {parser.stream.current}", 1)
            tree = nodes.Template([nodes.Assign(nodes.Name(VALUE, "store"), expression, lineno=1)], lineno=1)
            tree.set_environment(ENVIRONMENT)
            _check(tree, allowed=(*ALLOWED, *ARITHMETIC), what_is_allowed=IN_EXPRESSIONS)
            self.source = source
            self.names: frozenset[str] = frozenset(meta.find_undeclared_variables(tree))
            self.needed = self.names.difference(_tested_names(tree))
            self.fields = _fields_of_json(tree)
            self._template = ENVIRONMENT.from_string(_BoundedTree().visit(tree))
        except TemplateError as error:
            raise ValueError(error.message) from error
        except (RecursionError, MemoryError, SyntaxError) as error:
            raise ValueError("is an expression that is nested too deep") from error

    def value(self, values: Mapping[str, Any]) -> Any:
        """Return the value of the expression.

        Raises: ValueError, with the reason, where a name has no value or one of a wrong type.
        """
        context = self._template.new_context(dict(values))
        try:
            for _ in self._template.root_render_func(context):
                pass
            value = context.vars[VALUE]
            if isinstance(value, Undefined):
                str(value)  # raises an error that says what is missing
            return value
        except Exception as error:  # any error that a value of the record can cause
            raise ValueError(str(error)) from error


# ---- what is allowed in a template -------------------------------------------------------------------------------


def _check(
    tree: nodes.Template,
    allowed: tuple[type[nodes.Node], ...] = ALLOWED,
    what_is_allowed: str = IN_TEMPLATES,
) -> None:
    """Raise ValueError for the first node in the template that is not allowed."""
    all_nodes = list(tree.find_all(nodes.Node))
    if len(all_nodes) > TEMPLATE_NODES:
        raise ValueError(f"is a template of {len(all_nodes):,} parts, more than {TEMPLATE_NODES:,}")
    for node in all_nodes:
        where = f"line {node.lineno}"
        if not isinstance(node, allowed) or isinstance(node, nodes.For) and node.recursive:
            name = NODE_NAMES.get(type(node), type(node).__name__.lower())
            raise ValueError(f"{where}: no {name}: {what_is_allowed}")
        if isinstance(node, nodes.Name) and (node.name.startswith("_") or node.name == "self"):
            raise ValueError(f"{where}: {node.name}: is no name of a record")
        if isinstance(node, nodes.Filter | nodes.Test):
            kind, known = ("filter", FILTERS) if isinstance(node, nodes.Filter) else ("test", TESTS)
            if node.name not in known:
                raise ValueError(f"{where}: no {kind} {node.name}; there is {', '.join(known)}")
        if isinstance(node, nodes.List) or isinstance(node, nodes.Tuple) and node.ctx == "load":
            if not all(isinstance(item, nodes.Const) for item in node.items):
                raise ValueError(f"{where}: a list may hold only texts and numbers that are written in the template")


def _tested(tree: nodes.Template) -> list[nodes.Expr | None]:
    """Return what is tested for being defined, or has a default."""
    tests = tree.find_all((nodes.Test, nodes.Filter))
    return [node.node for node in tests if node.name in ("defined", "undefined", "default")]


def _tested_names(tree: nodes.Template) -> set[str]:
    return {node.name for node in _tested(tree) if isinstance(node, nodes.Name)}


def _fields_of_json(tree: nodes.Template) -> set[str]:
    """Return the fields that are taken from `json`, as json.x or json["x"], and not tested."""
    tested, fields = _tested(tree), set()
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        match node:
            case nodes.Getattr(node=nodes.Name(name="json"), attr=field) if node not in tested:
                fields.add(field)
            case nodes.Getitem(node=nodes.Name(name="json"), arg=nodes.Const(value=str(field))) if node not in tested:
                fields.add(field)
    return fields


class _BoundedTree(NodeTransformer):
    """Makes loops count their steps, and replaces `~` and arithmetic by filters, which bound their results."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        parts = [*node.body, node.test] if node.test else node.body
        node_count = sum(1 for part in parts for _ in part.find_all(nodes.Node))
        self.generic_visit(node)
        steps = nodes.Const(node_count + 1)
        node.iter = nodes.Filter(node.iter, "_counted", [steps], [], None, None, lineno=node.lineno)
        return node

    def visit_BinExpr(self, node: nodes.BinExpr) -> nodes.Expr:
        self.generic_visit(node)
        name, _ = ARITHMETIC[type(node)]
        return nodes.Filter(node.left, name, [node.right], [], None, None, lineno=node.lineno)

    visit_Add = visit_Sub = visit_Mul = visit_Div = visit_BinExpr

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        joined, *others = node.nodes
        for other in others:
            joined = nodes.Filter(joined, "_concat", [other], [], None, None, lineno=node.lineno)
        return joined


class _Steps:
    """Counts the steps of all loops in one rendering."""

    count = 0

    def add(self, steps: int) -> None:
        self.count += steps
        if self.count > TEMPLATE_STEPS:
            raise ValueError(f"its loops take more than {TEMPLATE_STEPS:,} steps")


# ---- values and filters ------------------------------------------------------------------------------------------


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
