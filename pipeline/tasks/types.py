"""Types that tasks share with what is built on them; no simulator is imported for their sake."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Observe = Callable[[NDArray[np.floating]], NDArray[np.float32]]
"""Raw simulator states (…, S) → what the net sees (…, D)."""
