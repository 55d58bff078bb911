"""How long a call takes on this machine."""

import statistics
import time
from collections.abc import Callable


def median_ms(prepare: Callable[[int], Callable[[], object]], calls: int, warm_up: int = 0) -> float:
    """The median time in milliseconds of what ``prepare`` returns for i = 0, 1, …, itself not timed.

    Args:
        prepare: i → the call to be timed, which waits for the device that it uses.
        calls: how many are made. warm_up: how many of them, the first, do not count.
    """
    taken = []
    for i in range(calls):
        call = prepare(i)
        begun = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken[warm_up:])
