"""Mutants: a source file with one small fault, for ``mutations.py``.

Another comparison or operator, another constant, a negated condition, a removed call, operand,
keyword or statement, swapped arguments. Code that cannot change a result is left out: docstrings,
annotations, ``__repr__``, logging, assertions for type checkers, texts of errors.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
NAMES = {"min": "max", "any": "all", "argmin": "argmax", "nanargmin": "nanargmax", "zeros": "ones"}
NAMES |= {other: name for name, other in NAMES.items()}
# mutants of these calls change a text alone, or end every run at once
_WITHOUT_EFFECT = ("logger.", "cast", "isinstance", "super", "BadInput", "BadConfig", "ValueError")


@dataclasses.dataclass
class Mutant:
    """One change of one file, and its outcome.

    Attributes:
        file: relative to the root.
        line: where the changed code begins.
        operator: kind of change.
        before: code that is replaced, on one line.
        after: its replacement, on one line.
        span: bytes of the file that are replaced.
        outcome: ``"killed"``, ``"timeout"`` or ``"survived"``; "" before it is tested.
        killer: the test that failed first.
        seconds: wall time of its tests.
    """

    file: str
    line: int
    operator: str
    before: str
    after: str
    span: tuple[int, int]
    outcome: str = ""
    killer: str = ""
    seconds: float = 0.0

    @property
    def room(self) -> str:
        """The folder of the package that it is in."""
        return Path(self.file).parts[1]

    def apply(self, source: bytes) -> bytes:
        """Return the file's content with the change."""
        start, end = self.span
        return source[:start] + self.after.encode() + source[end:]

    def __str__(self) -> str:
        before, after = (" ".join(code.split())[:100] for code in (self.before, self.after))
        return f"{self.file}:{self.line}: {self.operator}: {before} -> {after}"


def mutants_of(source: bytes, file: str) -> list[Mutant]:
    """Return all mutants of a file that compile, in the order of its lines."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    tree, found = ast.parse(source), {}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {alias.asname or alias.name for node in nodes for alias in node.names}
    for node, operator, after in _changes(tree, imported | {"self", "cls", "super"}):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        after = f"({after})" if isinstance(node, ast.expr) else after
        mutant = Mutant(file, node.lineno, operator, ast.unparse(node), after, (start, end))
        with warnings.catch_warnings(), contextlib.suppress(SyntaxError):
            warnings.simplefilter("error")  # of literals that are called or indexed
            compile(mutant.apply(source), file, "exec")
            found.setdefault((mutant.span, after), mutant)
    return sorted(found.values(), key=lambda mutant: (mutant.span, mutant.after))


def _changes(tree: ast.AST, imported: set[str]) -> Iterator[tuple[Any, str, str]]:
    """Yield nodes with a kind of change and the code that takes their place."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if _has_no_effect(node):
            continue
        for operator, after in (*_variants(node), *_variants_of_call(node, imported)):
            yield node, operator, after
        tests = [node.test] if isinstance(node, ast.If | ast.While) else getattr(node, "ifs", [])
        for test in tests:
            yield test, "negated condition", f"not ({ast.unparse(test)})"
        for name, child in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list"):
                children = child if isinstance(child, list) else [child]
                pending += [each for each in children if isinstance(each, ast.AST)]


def _has_no_effect(node: ast.AST) -> bool:
    """Whether code is documentation, an import, a type, display, logging or an error's text."""
    match node:
        case ast.JoinedStr() | ast.Assert() | ast.Import() | ast.ImportFrom():
            return True
        case ast.FunctionDef(name=name):
            return name == "__repr__"
        case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.Expr(value=ast.Constant()):
            return True
        case ast.Assign(targets=[ast.Name(id=name)], col_offset=0):  # of types: Rows = A | B
            return name == "__all__" or (name[0].isupper() and not name.isupper())
        case ast.Call(func=function):
            return ast.unparse(function).startswith(_WITHOUT_EFFECT)
        case ast.keyword(arg=name):
            return name == "strict"
    return False


def _variants(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield kinds of change of a node with the code that results; calls apart."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            for swapped in SWAPS[type(op)]:
                yield "comparison", ast.unparse(ast.Compare(left, [swapped()], [right]))
        case ast.BinOp(left=left, op=op, right=right):
            for swapped in SWAPS.get(type(op), ()):
                yield "arithmetic", ast.unparse(ast.BinOp(left, swapped(), right))
            yield "operand removed", ast.unparse(left)
        case ast.BoolOp(op=op, values=values):
            for swapped in SWAPS[type(op)]:
                yield "condition", ast.unparse(ast.BoolOp(swapped(), values))
            yield "operand removed", ast.unparse(values[0])
        case ast.UnaryOp(operand=operand):
            yield "sign removed", ast.unparse(operand)
        case ast.Constant(value=bool(value)):
            yield "flipped", repr(not value)
        case ast.Constant(value=int(value)):
            yield "constant", repr(value + 1)
        case ast.Constant(value=float(value)):
            yield "constant", repr(2 * value or 1.0)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield "negated condition", ast.unparse(ast.IfExp(test, orelse, body))
        case ast.Subscript(value=value, slice=ast.Slice(lower=lower, upper=upper, step=step)):
            for ends in {(None, upper), (lower, None)} - {(lower, upper)}:
                yield "slice", ast.unparse(ast.Subscript(value, ast.Slice(*ends, step)))
        case ast.Tuple(elts=[first, second], ctx=ast.Load()):
            yield "swapped", ast.unparse(ast.Tuple([second, first], ast.Load()))
        case ast.Name(id=name, ctx=ast.Load()) if name in NAMES:
            yield "min or max", NAMES[name]
        case ast.Attribute(value=value, attr=name) if name in NAMES:
            yield "min or max", ast.unparse(ast.Attribute(value, NAMES[name]))
        case ast.AugAssign(target=target, op=op, value=value):
            yield "statement removed", "pass"
            for swapped in SWAPS.get(type(op), ()):
                yield "arithmetic", ast.unparse(ast.AugAssign(target, swapped(), value))
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Continue() | ast.Break():
            yield "statement removed", "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "statement removed", "pass"


def _variants_of_call(node: ast.AST, imported: set[str]) -> Iterator[tuple[str, str]]:
    """Yield a call with swapped arguments or without a keyword, and what it is made on."""
    if not isinstance(node, ast.Call):
        return
    function, arguments, keywords = node.func, node.args, node.keywords
    plain = not any(isinstance(argument, ast.Starred) for argument in arguments)
    if len(arguments) == 2 and plain:
        yield "swapped", ast.unparse(ast.Call(function, arguments[::-1], keywords))
    for i, keyword in enumerate(keywords):
        if keyword.arg not in (None, "strict"):
            rest = keywords[:i] + keywords[i + 1 :]
            yield "keyword removed", ast.unparse(ast.Call(function, arguments, rest))
    owner = getattr(function, "value", None)
    if owner is not None and ast.unparse(owner).split(".")[0].split("(")[0] not in imported:
        yield "call removed", ast.unparse(owner)
    elif len(arguments) == 1 and plain and not keywords:
        yield "call removed", ast.unparse(arguments[0])
