"""Share a condition among several samples, so that a field computes its terms in (t, c) once for all of them."""

from collections.abc import Callable

from torch import Tensor


def repeated(condition: Tensor, rows: int) -> Tensor:
    """Repeat each row of ``condition`` (B, …) ``rows`` / B times in succession: (rows, …)."""
    return condition if len(condition) == rows else condition.repeat_interleave(rows // len(condition), dim=0)


def in_solve(
    field: Callable[[Tensor, Tensor, Tensor], Tensor], condition: Tensor, rows: int
) -> Callable[[float, Tensor], Tensor]:
    """Adapt ``field`` to solvers: v(t, x) with t a number and x (rows, …); successive x share a condition.

    If the field's attribute ``broadcasts`` is true, it gets t (1,) and the conditions unchanged, or only one of them if
    they are empty. Any other field gets t (rows,) and condition (rows, C).

    Args:
        field: v(t, x, c). condition: (B, C), B a divisor of ``rows``.
    """
    if getattr(field, "broadcasts", False):
        shared = condition if condition.shape[1:].numel() else condition[:1]
        return lambda t, x: field(x.new_full((1,), t), x, shared)
    every = repeated(condition, rows)
    return lambda t, x: field(x.new_full((rows,), t), x, every)
