"""`calculate_output` of a multi grader: arithmetic over the scores of its graders.

    0.5 * exact + 0.5 * min(similar, 1)          + - * / ^ (or **), parentheses, min max abs floor ceil exp sqrt log

Read as Python's grammar has it and worked out here, node by node: nothing is ever executed. Every number is a float.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

LONGEST = 1000
"""Characters."""
OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: math.pow}
FUNCTIONS: dict[str, tuple[Callable[..., float], int]] = {
    "min": (min, 1), "max": (max, 1), "abs": (abs, 0), "floor": (math.floor, 0), "ceil": (math.ceil, 0), "exp": (math.exp, 0),
    "sqrt": (math.sqrt, 0), "log": (math.log, 0)}
"""Each with 1 where it takes any number of arguments, 0 where it takes one."""


def names(formula: str) -> set[str]:
    """Names of graders that a formula uses. Raises ValueError for what is no such formula."""
    return {n.id for n in ast.walk(_parsed(formula)) if isinstance(n, ast.Name)} - set(FUNCTIONS)


def value(formula: str, scores: Mapping[str, float]) -> float:
    """What it comes to. Raises ValueError: no formula, a name without a score, or a result that is no number."""
    try:
        result = _value(_parsed(formula), scores)
    except (ArithmeticError, RecursionError, ValueError) as error:
        raise ValueError(f"calculate_output cannot be worked out: {error}") from error
    if not math.isfinite(result):
        raise ValueError(f"calculate_output comes to {result}")
    return result


def _parsed(formula: str) -> ast.expr:
    if len(formula) > LONGEST:
        raise ValueError(f"calculate_output has more than {LONGEST} characters")
    try:
        tree = ast.parse(formula.strip().replace("^", "**"), mode="eval").body
        _check(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"calculate_output is no formula: {getattr(error, 'msg', error)}") from error
    return tree


def _check(node: ast.expr) -> None:
    """Raises ValueError for anything but arithmetic."""
    match node:
        case ast.Constant(value=v) if type(v) in (int, float):
            _number(v)
        case ast.Name():
            if node.id in FUNCTIONS:
                raise ValueError(f"{node.id} is a function")
        case ast.UnaryOp(op=ast.UAdd() | ast.USub()):
            _check(node.operand)
        case ast.BinOp() if type(node.op) in OPERATORS:
            _check(node.left)
            _check(node.right)
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
            if not node.args or len(node.args) > 1 and not FUNCTIONS[name][1]:
                raise ValueError(f"{name} takes {'at least ' * FUNCTIONS[name][1]}one number")
            for argument in node.args:
                _check(argument)
        case _:
            raise ValueError(f"`{ast.unparse(node)[:80]}` is not arithmetic; there are + - * / ^ and {', '.join(FUNCTIONS)}")


def _value(node: ast.expr, scores: Mapping[str, float]) -> float:
    match node:
        case ast.Constant():
            return _number(node.value)
        case ast.Name():
            if node.id not in scores:
                raise ValueError(f"there is no grader `{node.id}`")
            return float(scores[node.id])
        case ast.UnaryOp():
            inside = _value(node.operand, scores)
            return -inside if isinstance(node.op, ast.USub) else inside
        case ast.BinOp():
            return OPERATORS[type(node.op)](_value(node.left, scores), _value(node.right, scores))
    return float(FUNCTIONS[node.func.id][0](*(_value(a, scores) for a in node.args)))


def _number(written: int | float) -> float:
    try:
        return float(written)
    except OverflowError as error:
        raise ValueError("a number is too large") from error
