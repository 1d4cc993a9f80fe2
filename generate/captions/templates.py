"""Templates of instructions, and expressions over a record: Jinja2's sandbox, reduced to what is needed, and bounded.

Neither has calls, and only expressions have arithmetic, on numbers alone. So a text can grow only by filters, `~` and
loops, and these are counted. All bounds are counts, never a time, so that a template gives the same result on every
machine.
"""

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.visitor import NodeTransformer

from generate.captions.sandbox import ARITHMETIC, ENVIRONMENT, FILTERS, STEPS, TESTS, Steps
from imagetext.limits import INSTRUCTION, TEMPLATE_NODES

ALLOWED = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign),
    *(nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Keyword, nodes.Test),
    *(nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.CondExpr, nodes.Concat),
    *(nodes.List, nodes.Tuple),
)
NODE_NAMES = {  # what messages call nodes
    nodes.Call: "calls",
    nodes.Mul: "*",
    nodes.Add: "+ (~ puts texts together)",
    nodes.Pow: "**",
}
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
            for part in self._template.generate({**values, STEPS: Steps()}):
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
