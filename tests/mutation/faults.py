"""Which small faults a module can have: for each node of its syntax tree, what may stand there instead.

Strings, annotations, imports and decorators stay as they are.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
SWAPPED = {
    name: other
    for pair in (
        ("min", "max"),
        ("any", "all"),
        ("minimum", "maximum"),
        ("zeros_like", "ones_like"),
        ("rsqrt", "sqrt"),
        ("sin", "cos"),
        ("find", "rfind"),
        ("lstrip", "rstrip"),
        ("partition", "rpartition"),
        ("match", "search"),
    )
    for name, other in (pair, pair[::-1])
} | {"fullmatch": "match", "sorted": "list"}
DROPPED = {
    *("abs", "bool", "clamp", "detach", "exp", "float", "log", "lower", "rstrip", "lstrip", "strip", "sqrt", "sum"),
    *("replace", "removeprefix", "removesuffix", "upper", "round", "flatten", "shuffle", "sort", "tril"),
}


@dataclass(frozen=True)
class Mutant:
    """A fault: the file, the place in its tree (the node's number, which of its variants), the line, in words.

    `function` is the function or method whose body it is in, "" for what runs when the module is imported.
    """

    file: str
    node: int
    variant: int
    line: int
    function: str
    what: str


def variants(node: ast.AST) -> Iterator[ast.AST | None]:
    """What may stand in the node's place; None where a filter is left out."""
    yield from _expressions(node)
    yield from _statements(node)


def _expressions(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=ops):
            for index, op in enumerate(ops):
                for other in COMPARISONS[type(op)]:
                    yield _with(node, ops=[*ops[:index], other(), *ops[index + 1 :]])
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in OPERATORS:
            yield _with(node, op=OPERATORS[type(op)]())
        case ast.BoolOp(op=op, values=values):
            yield _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
            for index in range(len(values)):
                rest = [*values[:index], *values[index + 1 :]]
                yield rest[0] if len(rest) == 1 else _with(node, values=rest)
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1) if value else ast.UnaryOp(ast.USub(), ast.Constant(1))
        case ast.Constant(value=float(value)):
            yield ast.Constant(value * 2 or 1.0)
        case ast.IfExp(test=test):
            yield _with(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.comprehension(ifs=[_, *_]):
            yield _with(node, ifs=[])
        case ast.Slice(lower=lower, upper=upper):
            if lower is not None:
                yield _with(node, lower=None)
            if upper is not None:
                yield _with(node, upper=None)
        case ast.Call():
            yield from _calls(node)


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    match node.func:
        case ast.Name(id=name) if name in SWAPPED:
            keywords = [] if name == "sorted" else node.keywords
            yield _with(node, func=ast.Name(SWAPPED[name], ast.Load()), keywords=keywords)
        case ast.Attribute(value=value, attr=name):
            if name in SWAPPED:
                yield _with(node, func=_with(node.func, attr=SWAPPED[name]))
            if name in DROPPED:
                yield value
    for keyword in node.keywords:
        if keyword.arg is not None:
            yield _with(node, keywords=[other for other in node.keywords if other is not keyword])


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.If(test=test) | ast.While(test=test):
            yield _with(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.Return(value=value) if value is not None and not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Continue() | ast.Break() | ast.Raise():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()


def _with(node: ast.AST, **changes: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def _code(node: ast.AST, function: str = "", within: str = "") -> Iterator[tuple[ast.AST, str]]:
    """The nodes that may be changed, outer ones first, each with the function whose body it is in."""
    yield node, function
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "format_spec") or isinstance(node, ast.Import):
            continue
        inner, place = function, within
        if isinstance(node, ast.ClassDef):
            place = f"{within}{node.name}."
        elif isinstance(node, ast.FunctionDef) and name == "body" and not function:
            inner = f"{within}{node.name}"
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _code(child, inner, place)


def mutants_of(file: str, source: str) -> list[Mutant]:
    """All mutants of a module."""
    found = []
    for number, (node, function) in enumerate(_code(ast.parse(source))):
        for variant, other in enumerate(variants(node)):
            line = getattr(node, "lineno", 0) or getattr(getattr(node, "target", None), "lineno", 0)
            found.append(Mutant(file, number, variant, line, function, f"{_text(node)}  →  {_text(other)}"))
    return found


def _text(node: ast.AST | None) -> str:
    text = ast.unparse(node) if node is not None else ""
    first = text.split("\n")[0]
    return first if len(first) <= 90 else first[:90] + "…"


class _Replace(ast.NodeTransformer):
    def __init__(self, target: ast.AST, other: ast.AST | None) -> None:
        self.target, self.other = target, other

    def visit(self, node: ast.AST) -> ast.AST | None:
        return self.other if node is self.target else self.generic_visit(node)


def mutated(mutant: Mutant, source: str) -> str:
    """The module's source with this fault."""
    tree = ast.parse(source)
    node, _ = list(_code(tree))[mutant.node]
    other = list(variants(node))[mutant.variant]
    return ast.unparse(ast.fix_missing_locations(_Replace(node, other).visit(tree)))
