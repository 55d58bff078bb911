"""Stop fine-tuning early when the diversity of the samples collapses, and keep the last healthy weights."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.training.diversity_monitor import DiversityReading
from pipeline.utils.atomic import replacing


class CollapseStopping:
    """Monitor of the spread ratio of a model in training, which keeps the last healthy weights.

    A model collapses if its ratio falls below ``collapse_below``, or below half of the base model's ratio at the same
    number of evaluations if that is less. Flow matching predicts the mean in one evaluation, so its ratio may be small
    there. After the last step, any ratio below ``collapse_below`` gives a warning.

    Args:
        measure: measures a net's diversity. last_step: of training.
        first: the base model's reading at the same number of evaluations, used for step 0.
        collapse_below: the least healthy spread ratio.
        stop: whether a collapse ends training and restores the last healthy weights.
        warn: called with each warning, one line. show: called with each reading and its step.
        keep: file of the healthy weights, so that a resumed run has them; None: they stay in memory.
        steps: the steps after which the caller calls ``check``.

    Attributes:
        reading: the last reading. healthy: whether training may continue after it.
    """

    def __init__(
        self,
        measure: Callable[[nn.Module], DiversityReading],
        first: DiversityReading,
        last_step: int,
        *,
        collapse_below: float,
        stop: bool,
        warn: Callable[[str], None],
        show: Callable[[DiversityReading, int], None] = lambda _reading, _step: None,
        keep: Path | None = None,
        steps: Sequence[int] = (),
    ) -> None:
        self.steps = steps
        self.reading = first
        self.healthy = True
        self._measure = measure
        self._first = first
        self._limit = min(collapse_below, first.spread_ratio / 2)
        self._collapse_below = collapse_below
        self._last_step = last_step
        self._stop = stop
        self._warn = warn
        self._show = show
        self._keep = keep
        self._healthy: dict[str, Any] = {}

    def check(self, step: int, net: nn.Module) -> bool:
        """Measure ``net`` after ``step`` updates; return whether training may continue."""
        self.reading = reading = self._measure(net) if step else self._first  # of the weights at step 0
        collapsing = not reading.spread_ratio >= self._limit  # written so that NaN counts as a collapse
        if not collapsing and self._stop:
            self._remember(step, net)
        if collapsing or (step == self._last_step and reading.spread_ratio < self._collapse_below):
            self._warn(
                f"the samples are collapsing: at step {step} their spread is {reading.spread_ratio:.2f} of the base "
                f"model's (collapse_below: {self._collapse_below}); coupling nearest or reflow, a lower lr or fewer "
                f"steps keep more of it{'; the last healthy weights are kept' if collapsing and self._stop else ''}"
            )
        self.healthy = not (collapsing and self._stop)
        self._show(reading, step)
        return self.healthy

    def settle(self, net: nn.Module, steps: int) -> int:
        """Restore the last healthy weights if ``net`` has collapsed; return the steps that led to its weights."""
        return steps if self.healthy else self.restore(net)

    def restore(self, net: nn.Module) -> int:
        """Load the last healthy weights into ``net``; return their step, 0 for those before training."""
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
