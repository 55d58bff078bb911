"""Early stop: reads the guard while a model is fine-tuned, says so when it collapses, and keeps what was healthy."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.training.guard import Reading
from pipeline.utils.atomic import replacing


class Watch:
    """Reads the spread ratio of a model in training, and remembers the last weights that were healthy.

    Collapsing means to fall below ``collapse_below``, or below half of what the base model itself has at so few
    evaluations where that is less: flow matching makes the mean in one evaluation, so that its spread there is no
    measure. After the last step, little spread is told of whatever the base model had.

    Args:
        read: the guard's reading of a net. first: that of the base model at as many evaluations, taken for that of
            step 0.
        last_step: of training.
        collapse_below: the least healthy spread ratio.
        stop: whether training is to end where it collapses, going back to the last healthy weights.
        tell: is given the warning, one line, at every reading that calls for it. show: is given every reading.
        keep: file of the healthy weights, so that a resumed run has them; None: they are kept in memory.
        steps: those after which it is to be asked.

    Attributes:
        reading: the last one. healthy: whether training is to go on after it.
    """

    def __init__(
        self,
        read: Callable[[nn.Module], Reading],
        first: Reading,
        last_step: int,
        *,
        collapse_below: float,
        stop: bool,
        tell: Callable[[str], None],
        show: Callable[[Reading, int], None] = lambda _reading, _step: None,
        keep: Path | None = None,
        steps: Sequence[int] = (),
    ) -> None:
        self.steps = steps
        self.reading = first
        self.healthy = True
        self._read = read
        self._first = first
        self._limit = min(collapse_below, first.spread_ratio / 2)
        self._collapse_below = collapse_below
        self._last_step = last_step
        self._stop = stop
        self._tell = tell
        self._show = show
        self._keep = keep
        self._healthy: dict[str, Any] = {}

    def look(self, step: int, net: nn.Module) -> bool:
        """Read ``net`` after ``step`` updates; return whether training is to go on."""
        self.reading = reading = self._read(net) if step else self._first  # of the same weights
        collapsing = not reading.spread_ratio >= self._limit  # so written that NaN is collapsing
        if not collapsing and self._stop:
            self._remember(step, net)
        if collapsing or (step == self._last_step and reading.spread_ratio < self._collapse_below):
            self._tell(
                f"the samples are collapsing: at step {step} their spread is {reading.spread_ratio:.2f} of the base "
                f"model's (collapse_below: {self._collapse_below}); coupling nearest or reflow, a lower lr or fewer "
                f"steps keep more of it{'; the last healthy weights are kept' if collapsing and self._stop else ''}"
            )
        self.healthy = not (collapsing and self._stop)
        self._show(reading, step)
        return self.healthy

    def settle(self, net: nn.Module, steps: int) -> int:
        """Give ``net`` the last healthy weights if it has collapsed; the steps that led to its weights, at most all."""
        return steps if self.healthy else self.go_back(net)

    def go_back(self, net: nn.Module) -> int:
        """Put the last healthy weights, those of step 0 if no others, into ``net``; return their step."""
        healthy = self._healthy
        if self._keep is not None:
            healthy = torch.load(self._keep, weights_only=True, map_location="cpu")
        net.load_state_dict(healthy["net"])
        return healthy["step"]

    def _remember(self, step: int, net: nn.Module) -> None:
        healthy = {"step": step, "net": net.state_dict()}
        if self._keep is None:
            self._healthy = deepcopy(healthy)
            return
        with replacing(self._keep) as temporary:
            torch.save(healthy, temporary)
