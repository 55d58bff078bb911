"""Early stop: reads the guard while a model is fine-tuned, says so when it collapses, and keeps what was healthy."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from pipeline.atomic import replacing
from pipeline.evaluation.policy import FlowPolicy
from pipeline.training.guard import Guard, Reading


class Watch:
    """Reads the spread ratio of a model in training, and remembers the last weights that were healthy.

    Args:
        guard: compares with the base model. policy: the base model, whose net is replaced by the one to read. nfe: to
            read it at.
        collapse_below: the least healthy spread ratio; where the base model itself has less at so few evaluations,
            what it has.
        stop: whether training is to end where it falls below, going back to the last healthy weights.
        keep: file of those weights, so that a resumed run has them.
        tell: is given the warning, one line, at every reading below.
    """

    def __init__(
        self,
        guard: Guard,
        policy: FlowPolicy,
        nfe: int,
        *,
        collapse_below: float,
        stop: bool,
        keep: Path,
        tell: Callable[[str], None],
    ) -> None:
        self._guard = guard
        self._policy = policy
        self._nfe = nfe
        self._below = min(collapse_below, guard.read(policy, nfe).spread_ratio)
        self._stop = stop
        self._keep = keep
        self._tell = tell

    def look(self, step: int, net: nn.Module) -> tuple[Reading, bool]:
        """Read ``net`` after ``step`` updates: the reading, and whether training is to go on."""
        reading = self._guard.read(self._policy.with_net(net), self._nfe)
        if reading.spread_ratio >= self._below:
            if self._stop:
                with replacing(self._keep) as temporary:
                    torch.save({"step": step, "net": net.state_dict()}, temporary)
            return reading, True
        self._tell(
            f"the samples are collapsing: at step {step} their spread is {reading.spread_ratio:.2f} of the base "
            f"model's (allowed: {self._below:.2f})"
            + ("; training stops and goes back to the last step that was healthy" if self._stop else "")
        )
        return reading, not self._stop

    def go_back(self, net: nn.Module) -> int:
        """Put the last healthy weights, those of step 0 if no others, into ``net``; return their step."""
        healthy = torch.load(self._keep, weights_only=True, map_location="cpu")
        net.load_state_dict(healthy["net"])
        return healthy["step"]
