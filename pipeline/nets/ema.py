"""Exponential moving average of a net's weights, on ``torch.optim.swa_utils.AveragedModel``."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(net: nn.Module, decay: float) -> AveragedModel:
    """Make a moving average of ``net``'s parameters; call ``update_parameters(net)`` after each optimiser step.

    The first update copies the net. After n updates the next decay is min(``decay``, (1 + n) / (10 + n)), so that the
    random start is soon forgotten (TensorFlow's ``num_updates``). With decay 0 the average is the net itself.
    """
    return AveragedModel(net, multi_avg_fn=_update(decay))


def _update(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    @torch.no_grad()
    def update(average: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        n = int(count)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(average), list(current), weight)

    return update
