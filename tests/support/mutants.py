"""Small breaks of a module's source, made one at a time from its syntax tree. Pure: text in, trees out.

A break is one of: a comparison at its limit, one condition of several left out, a condition turned round, arithmetic
the other way, a number one higher, a statement left out, a `with` left out. Texts, annotations, asserts, log lines and
the words of an error are left alone: their breaks say little.

Weak points: one break at a time, and no break that adds something. A name (`where`, `change`) holds no line number, so
that a judgement outlives an edit elsewhere in the file.
"""

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
_LOG_METHODS = {"debug", "info", "warning", "error", "exception", "critical"}
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Mutant:
    """One break.

    Attributes:
        where: the function or class that holds it, as `Outbox.offer`, or `module`.
        change: what was, and what is instead, as source text; made unique within `where` by a number.
        lines: the first and the last line of the statement.
        function: name and first line of the outermost function around it, when only its body changes; else None.
        number: which one of `mutants_of`, for `mutated`.
    """

    where: str
    change: str
    lines: tuple[int, int]
    function: tuple[str, int] | None
    number: int


@dataclass
class _Break:
    where: str
    before: str
    after: str
    lines: tuple[int, int]
    function: tuple[str, int] | None
    apply: Callable[[], None]


def mutants_of(source: str) -> list[Mutant]:
    """Every break of a module, in the order of the source."""
    seen = Counter[tuple[str, str]]()
    found = []
    for number, made in enumerate(_Finder(ast.parse(source)).breaks):
        change = f"{made.before} -> {made.after}"
        seen[made.where, change] += 1
        if seen[made.where, change] > 1:
            change += f" (#{seen[made.where, change]})"
        found.append(Mutant(made.where, change, made.lines, made.function, number))
    return found


def mutated(source: str, mutant: Mutant) -> ast.Module:
    """The module's tree with this one break."""
    tree = ast.parse(source)
    _Finder(tree).breaks[mutant.number].apply()
    return ast.fix_missing_locations(tree)


class _Finder:
    """Walks a tree and collects its breaks; `apply` of one changes that tree."""

    def __init__(self, tree: ast.Module) -> None:
        self.breaks: list[_Break] = []
        self._where: list[str] = []
        self._function: tuple[str, int] | None = None
        self._lines = (0, 0)
        self._statements(tree.body)

    def _add(self, node: ast.AST, after: ast.AST | str, apply: Callable[[], None]) -> None:
        shown = after if isinstance(after, str) else ast.unparse(after)
        where = ".".join(self._where) or "module"
        self.breaks.append(_Break(where, _short(ast.unparse(node)), _short(shown), self._lines, self._function, apply))

    def _statements(self, body: list[ast.stmt]) -> None:
        for at, statement in enumerate(body):
            is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if is_text or isinstance(statement, ast.Assert | ast.Import | ast.ImportFrom | ast.Pass | ast.Global):
                continue
            end = statement.end_lineno if not hasattr(statement, "body") else statement.lineno
            self._lines = (statement.lineno, end or statement.lineno)
            self._leave_out(body, at, statement)
            self._inside(statement)

    def _leave_out(self, body: list[ast.stmt], at: int, statement: ast.stmt) -> None:
        if isinstance(statement, ast.With) and not any(item.optional_vars for item in statement.items):
            bare = ast.If(ast.Constant(value=True), statement.body, [])
            items = ", ".join(ast.unparse(item) for item in statement.items)
            self._add(ast.Name(f"with {items}"), "left out", lambda: body.__setitem__(at, bare))
            return
        is_effect = (
            (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and not _is_log(statement.value))
            or (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Attribute | ast.Subscript))
            or isinstance(statement, ast.AugAssign | ast.Delete | ast.Raise | ast.Continue | ast.Break)
            or (isinstance(statement, ast.Return) and statement.value is None)
        )
        is_first_value = isinstance(statement, ast.Assign) and self._where[-1:] == ["__init__"]  # missing at once
        if is_effect and self._function is not None and not is_first_value:
            self._add(statement, "left out", lambda: body.__setitem__(at, ast.Pass()))

    def _inside(self, statement: ast.stmt) -> None:
        if isinstance(statement, _Function | ast.ClassDef):
            self._definition(statement)
            return
        if isinstance(statement, ast.Raise) or (isinstance(statement, ast.Expr) and _is_log(statement.value)):
            return
        if isinstance(statement, ast.If):
            self._turn_round(statement)
        lines = self._lines
        for name, value in ast.iter_fields(statement):
            if name in ("annotation", "type_comment"):
                continue
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                self._statements(value)
            elif isinstance(value, list):
                for item in value:
                    self._part(statement, item)
            elif isinstance(value, ast.AST):
                self._lines = lines
                self._part(statement, value)
        if isinstance(statement, ast.AugAssign):
            self._lines = lines
            self._arithmetic(statement)

    def _definition(self, statement: _Function | ast.ClassDef) -> None:
        self._where.append(statement.name)
        outer = self._function
        if isinstance(statement, _Function):
            for default in (*statement.args.defaults, *statement.args.kw_defaults):
                if default is not None:
                    self._expression(statement, default)
            if outer is None:
                first = min([statement.lineno, *(mark.lineno for mark in statement.decorator_list)])
                self._function = (".".join(self._where), first)
        self._statements(statement.body)
        self._function = outer
        self._where.pop()

    def _part(self, parent: ast.AST, node: object) -> None:
        if isinstance(node, ast.ExceptHandler | ast.match_case):
            if isinstance(node, ast.match_case) and node.guard is not None:
                self._expression(node, node.guard)
            self._statements(node.body)
        elif isinstance(node, ast.expr):
            self._expression(parent, node)
        elif isinstance(node, ast.withitem):
            self._expression(node, node.context_expr)

    def _expression(self, parent: ast.AST, node: ast.expr) -> None:
        if isinstance(node, ast.JoinedStr):
            return
        if isinstance(node, ast.Compare):
            for at, operator in enumerate(node.ops):
                changed = copy.copy(node)
                changed.ops = [*node.ops]
                changed.ops[at] = _COMPARISONS[type(operator)]()
                ops, new = node.ops, changed.ops[at]
                self._add(node, changed, lambda ops=ops, at=at, new=new: ops.__setitem__(at, new))  # type: ignore[misc]
        elif isinstance(node, ast.BoolOp):
            for at in range(len(node.values)):
                rest = node.values[:at] + node.values[at + 1 :]
                after = ast.BoolOp(node.op, rest) if len(rest) > 1 else rest[0]
                self._add(node, after, lambda after=after: _replace(parent, node, after))  # type: ignore[misc]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            self._add(node, node.operand, lambda: _replace(parent, node, node.operand))
        elif isinstance(node, ast.BinOp):
            self._arithmetic(node)
        elif isinstance(node, ast.Constant):
            self._constant(node)
        elif isinstance(node, ast.IfExp):
            self._turn_round(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.comprehension):
                self._expression(child, child.iter)
                for condition in child.ifs:
                    self._expression(child, condition)
            elif isinstance(child, ast.keyword):
                self._expression(child, child.value)
            elif isinstance(child, ast.expr):
                self._expression(node, child)

    def _arithmetic(self, node: ast.BinOp | ast.AugAssign) -> None:
        other = _ARITHMETIC.get(type(node.op))
        is_text = isinstance(node, ast.BinOp) and any(
            isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
            for side in (node.left, node.right)
        )
        if other is not None and not is_text:
            changed = copy.copy(node)
            changed.op = other()
            self._add(node, changed, lambda: setattr(node, "op", other()))

    def _constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            new: bool | float = not value
        elif isinstance(value, int | float):
            new = value + 1
        else:
            return
        self._add(node, ast.Constant(value=new), lambda: setattr(node, "value", new))

    def _turn_round(self, node: ast.If | ast.IfExp) -> None:
        """A condition that holds nothing else to break."""
        test = node.test
        if isinstance(test, ast.Name | ast.Attribute | ast.Call | ast.NamedExpr | ast.Subscript):
            turned = ast.UnaryOp(ast.Not(), test)
            self._add(test, turned, lambda: setattr(node, "test", turned))


def _is_log(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _LOG_METHODS


def _replace(parent: ast.AST, old: ast.expr, new: ast.expr) -> None:
    for name, value in ast.iter_fields(parent):
        if value is old:
            setattr(parent, name, new)
        elif isinstance(value, list) and any(item is old for item in value):
            setattr(parent, name, [new if item is old else item for item in value])


def _short(text: str) -> str:
    """One line, of a length that can be read."""
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:60]} ... {line[-35:]}"


def changed_lines(diff: str) -> dict[str, set[int]]:
    """The new lines of each file in the output of `git diff --unified=0`."""
    lines: dict[str, set[int]] = {}
    path = ""
    for line in diff.splitlines():
        if line.startswith("+++ "):
            path = line[4:].removeprefix("b/")
        elif line.startswith("@@"):
            first, _, count = line.split("+")[1].split(" ")[0].partition(",")
            lines.setdefault(path, set()).update(range(int(first), int(first) + int(count or 1)))
    return lines


def those_in(mutants: list[Mutant], lines: set[int]) -> Iterator[Mutant]:
    """The breaks of statements that hold one of these lines."""
    return (mutant for mutant in mutants if not lines.isdisjoint(range(mutant.lines[0], mutant.lines[1] + 1)))
