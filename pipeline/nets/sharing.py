"""Several samples of one condition: a field need not work out for each what depends on time and condition alone."""

from collections.abc import Callable

from torch import Tensor


def repeated(condition: Tensor, rows: int) -> Tensor:
    """``condition`` (B, …), each row of it ``rows`` / B times in succession: (rows, …)."""
    return condition if len(condition) == rows else condition.repeat_interleave(rows // len(condition), dim=0)


def in_solve(
    field: Callable[[Tensor, Tensor, Tensor], Tensor], condition: Tensor, rows: int
) -> Callable[[float, Tensor], Tensor]:
    """``field`` as solvers call it, v(t, x) with t a number and x (rows, …), each condition shared by successive x.

    A field whose attribute ``broadcasts`` is true is given t (1,) and the conditions as they are, one if they are
    empty; any other t (rows,) and condition (rows, C).

    Args:
        field: v(t, x, c). condition: (B, C), B a divisor of ``rows``.
    """
    if getattr(field, "broadcasts", False):
        shared = condition if condition.shape[1:].numel() else condition[:1]
        return lambda t, x: field(x.new_full((1,), t), x, shared)
    every = repeated(condition, rows)
    return lambda t, x: field(x.new_full((rows,), t), x, every)
