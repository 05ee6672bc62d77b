"""Learning-rate curves written as a text in a hyp file: parsed and evaluated, never run as code.

`parse_lf("lambda x, y: (1 - x / y) * 0.8 + 0.2")` returns a function of two numbers. This file
needs the standard library only.
"""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any, NoReturn

_MAX_TEXT = 500  # characters; also limits the work of one evaluation
_MAX_DEPTH = 100  # nested operations; Python's own stack allows many more
# These need integers or lists, and every number here is a float.
_NOT_FOR_FLOATS = {
    *("comb", "dist", "factorial", "frexp", "fsum", "gcd", "isqrt", "lcm", "ldexp"),
    *("modf", "perm", "prod", "sumprod"),
}
_MATH = {
    name: getattr(math, name)
    for name in dir(math)
    if not name.startswith("_") and name not in _NOT_FOR_FLOATS
}
_CONSTANTS = {name: value for name, value in _MATH.items() if isinstance(value, float)}
_FUNCTIONS = {name: value for name, value in _MATH.items() if callable(value)}
_FUNCTIONS |= {"min": min, "max": max, "abs": abs}
_OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}

_Evaluator = Callable[[tuple[float, ...]], float]  # from the arguments' values to a number


class LF:
    """A function of (epochs into the segment, length of the segment) that `parse_lf` made.

    Schedulers store it by its `text`.
    """

    def __init__(self, text: str, body: _Evaluator) -> None:
        self.text = text
        self._body = body

    def __call__(self, x: float, y: float) -> float:
        """Return the factor at x of y epochs.

        Raises ValueError where it has no value: overflow, division by zero, a complex result.
        """
        try:
            value = self._body((float(x), float(y)))
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ValueError(
                f"lf {self.text!r} has no value at x={x}, y={y}: {error.args[-1]}"
            ) from None
        if not math.isfinite(value):
            raise ValueError(
                f"lf {self.text!r} is {value} at x={x}, y={y} (a finite number is needed)"
            )
        return value

    def __repr__(self) -> str:
        return f"parse_lf({self.text!r})"


def parse_lf(text: str) -> LF:
    """Turn a text such as "lambda x, y: (1 - x / y) * 0.8 + 0.2" into a function.

    The lambda has two arguments; the second may have a default. Allowed are arithmetic,
    comparison, `if else`, numbers, and the functions and constants of `math` that work on floats,
    with `min`, `max` and `abs`, written `cos` or `math.cos`. Every number is a float, so no result
    grows without bound. Raises ValueError, naming what was found, for anything else.
    """
    try:
        function = _parse_lambda(text)
        names = _argument_names(function.args, text)
        for default in function.args.defaults:
            # Never used, since both arguments are always passed, but it must be valid as well.
            _Compiler([], text).visit(default)
        lf = LF(text, _Compiler(names, text).visit(function.body))
        _check_constant_parts(function.body, names, text)
    except RecursionError:
        raise ValueError(f"lf {text!r}: too deeply nested") from None
    return lf


def _parse_lambda(text: str) -> ast.Lambda:
    if not isinstance(text, str):
        raise ValueError(f"lf: found {text!r}, need a text such as 'lambda x, y: 1 - x / y'")
    if len(text) > _MAX_TEXT:
        raise ValueError(f"lf: too long: {len(text)} characters (at most {_MAX_TEXT})")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", error)
        raise ValueError(f"lf {text!r}: not an expression: {reason}") from None
    if not isinstance(tree, ast.Lambda):
        raise ValueError(f"lf {text!r}: found {_describe(tree)}, need 'lambda x, y: ...'")
    return tree


def _argument_names(arguments: ast.arguments, text: str) -> list[str]:
    names = [argument.arg for argument in arguments.posonlyargs + arguments.args]
    has_others = arguments.vararg or arguments.kwarg or arguments.kwonlyargs
    if len(names) != 2 or len(set(names)) != 2 or has_others or len(arguments.defaults) > 1:
        raise ValueError(
            f"lf {text!r}: need a lambda with exactly two arguments (the second may have a default)"
        )
    return names


def _check_constant_parts(body: ast.AST, names: list[str], text: str) -> None:
    """Evaluate what does not depend on the arguments, so that `1 / 0` is an error at once."""
    for node in ast.walk(body):
        is_constant = not any(isinstance(n, ast.Name) and n.id in names for n in ast.walk(node))
        if isinstance(node, ast.BinOp | ast.Call) and is_constant:
            LF(text, _Compiler([], text).visit(node))(0, 0)


def _describe(node: ast.AST) -> str:
    return f"{type(node).__name__} ({ast.unparse(node)!r})"


def _require_real(value: Any) -> float:
    """Pass a real number on; abs() must not turn the root of a negative number into a real one."""
    if isinstance(value, complex):
        raise ValueError("the result is not a real number")
    return float(value)


class _Compiler(ast.NodeVisitor):
    """Turns a syntax tree into nested functions of the arguments' values.

    There is a `visit_` method for each kind of node that is allowed; all others are refused.
    """

    def __init__(self, names: list[str], text: str) -> None:
        self.names = names
        self.text = text
        self.depth = 0

    def visit(self, node: ast.AST) -> _Evaluator:
        if self.depth > _MAX_DEPTH:
            raise ValueError(
                f"lf {self.text!r}: too deeply nested (at most {_MAX_DEPTH} levels are allowed)"
            )
        self.depth += 1
        evaluator = super().visit(node)
        self.depth -= 1
        return evaluator

    def generic_visit(self, node: ast.AST) -> NoReturn:
        allowed = ", ".join(self.names) or "no names"
        raise ValueError(
            f"lf {self.text!r}: found {_describe(node)} (allowed are numbers, {allowed}, "
            "arithmetic, comparison, 'if else', and the functions and constants of math)"
        )

    def visit_Constant(self, node: ast.Constant) -> _Evaluator:
        if type(node.value) not in (int, float):
            self.generic_visit(node)
        try:
            number = float(node.value)
        except OverflowError:
            raise ValueError(f"lf {self.text[:60]!r}: a number is too large") from None
        return lambda args: number

    def visit_Name(self, node: ast.Name) -> _Evaluator:
        if node.id not in self.names:
            return self._constant(node)
        position = self.names.index(node.id)
        return lambda args: args[position]

    def visit_Attribute(self, node: ast.Attribute) -> _Evaluator:
        return self._constant(node)

    def visit_BinOp(self, node: ast.BinOp) -> _Evaluator:
        operate = self._operator(node.op, node)
        left, right = self.visit(node.left), self.visit(node.right)
        return lambda args: _require_real(operate(left(args), right(args)))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> _Evaluator:
        operate, operand = self._operator(node.op, node), self.visit(node.operand)
        return lambda args: operate(operand(args))

    def visit_Compare(self, node: ast.Compare) -> _Evaluator:
        relations = [self._operator(op, node) for op in node.ops]
        terms = [self.visit(term) for term in (node.left, *node.comparators)]

        def compare(args: tuple[float, ...]) -> float:
            values = [term(args) for term in terms]
            pairs = zip(relations, values, values[1:], strict=False)  # one value more than pairs
            return float(all(relation(a, b) for relation, a, b in pairs))

        return compare

    def visit_IfExp(self, node: ast.IfExp) -> _Evaluator:
        test, body, orelse = self.visit(node.test), self.visit(node.body), self.visit(node.orelse)
        return lambda args: body(args) if test(args) else orelse(args)

    def visit_Call(self, node: ast.Call) -> _Evaluator:
        function = _FUNCTIONS.get(self._math_name(node.func))
        if function is None or node.keywords:
            self.generic_visit(node)
        arguments = [self.visit(argument) for argument in node.args]
        return lambda args: _require_real(function(*(argument(args) for argument in arguments)))

    def _constant(self, node: ast.AST) -> _Evaluator:
        constant = _CONSTANTS.get(self._math_name(node))
        if constant is None:
            self.generic_visit(node)
        return lambda args: constant

    def _operator(self, op: ast.AST, node: ast.AST) -> Callable:
        if type(op) not in _OPERATORS:
            self.generic_visit(node)
        return _OPERATORS[type(op)]

    def _math_name(self, node: ast.AST) -> str | None:
        """Return "cos" for the tree of `cos` or `math.cos`, None for anything else."""
        if isinstance(node, ast.Name) and node.id not in self.names:
            return node.id
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            # An argument called `math` hides the module.
            return node.attr if node.value.id == "math" not in self.names else None
        return None
