"""Time calls on this machine."""

import statistics
import time
from collections.abc import Callable


def median_ms(prepare: Callable[[int], Callable[[], object]], calls: int, warm_up: int = 0) -> float:
    """Return the median time in milliseconds of the calls that ``prepare`` makes for i = 0, 1, …

    Args:
        prepare: i → the call to be timed; the call must wait for its device. ``prepare`` itself is not timed.
        calls: number of calls. warm_up: number of first calls that do not count.
    """
    taken = []
    for i in range(calls):
        call = prepare(i)
        begun = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - begun))
    return statistics.median(taken[warm_up:])
