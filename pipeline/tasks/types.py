"""Define types shared by tasks and the code that uses them, without importing a simulator."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Observe = Callable[[NDArray[np.floating]], NDArray[np.float32]]
"""Raw simulator states (…, S) → observation vectors of the net (…, D)."""
