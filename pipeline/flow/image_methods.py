"""The methods of Table 1 that are trained from scratch: the path and the coupling of each."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.flow.path import PATHS, AffinePath, variance_exploding
from pipeline.settings.images import ImageMethod, ImagePretrainSettings

DATA_DEVIATION = 0.5
"""Standard deviation of image data in [-1, 1] that ``ScaledField`` assumes, as do Karras et al. (2022)."""


@dataclass(frozen=True)
class FlowMethod:
    """A row of Table 1 trained by flow matching.

    Attributes:
        path: a key of ``PATHS``.
        sigma: name of the pretraining setting that is the path's argument; None: the argument is 0, but ``ve`` always
            takes two settings.
        coupling: of noise and data. scaled: whether the net learns a ``ScaledField``.
    """

    path: str
    sigma: str | None = None
    coupling: str = "independent"
    scaled: bool = False


FLOW_METHODS: dict[ImageMethod, FlowMethod] = {
    "vp_fm": FlowMethod("vp", scaled=True),
    "ve_fm": FlowMethod("ve", scaled=True),
    "ot_fm": FlowMethod("ot", "ot_sigma_min"),
    "si": FlowMethod("si"),
    "i_cfm": FlowMethod("i_cfm", "sigma"),
    "ot_cfm": FlowMethod("i_cfm", "sigma", "minibatch_ot"),
}


_LAST = 1 - 2e-5
"""Later times use the path's speed at this time, because the VP path stands still at its very end."""


def path_of(method: ImageMethod, settings: ImagePretrainSettings) -> AffinePath:
    """Make the probability path of a method of ``FLOW_METHODS``."""
    row = FLOW_METHODS[method]
    if row.path == "ve":
        return variance_exploding(settings.ve_sigma_min, sigma_max=settings.ve_sigma_max)
    return PATHS[row.path](0.0 if row.sigma is None else getattr(settings, row.sigma))


class ScaledField(nn.Module):
    """v(t, x, c) = r(t) F(t, x / s(t), c), with s the size of x_t and r the size of the velocity, known from the path.

    On the VP and VE paths s and r vary with t by orders of magnitude, so the net does not have to learn them. The mean
    square error of F, in place of v, is the flow-matching loss weighted by 1/r(t)². The noise prediction of Ho et al.
    (2020) and the preconditioning of Karras et al. (2022, section 5) do the same. The minimiser is the same field.

    Args:
        net: F, itself a velocity field.
    """

    def __init__(self, net: nn.Module, path: AffinePath) -> None:
        super().__init__()
        self.net = net
        self.path = path
        self.broadcasts = getattr(net, "broadcasts", False)

    def rate(self, t: Tensor) -> Tensor:
        """Compute r(t), shaped as t: the root mean square of the target velocity."""
        t = t.clamp(max=_LAST)
        return (self.path.alpha_rate(t) * DATA_DEVIATION).square().add(self.path.sigma_rate(t).square()).sqrt()

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        """t: (B,), or (1,) if the net broadcasts; x: (B, …), condition: (B, C) → velocity, shaped as x."""
        size = (self.path.alpha(t) * DATA_DEVIATION).square().add(self.path.sigma(t).square()).sqrt()
        ones = [1] * (x.dim() - 1)
        return self.rate(t).view(-1, *ones) * self.net(t, x / size.view(-1, *ones), condition)


def make_field(net: nn.Module, method: ImageMethod, settings: ImagePretrainSettings) -> nn.Module:
    """Make the model that pretraining trains: ``net`` as a velocity field, or as the noise prediction of ``ddpm``."""
    if method != "ddpm" and FLOW_METHODS[method].scaled:
        return ScaledField(net, path_of(method, settings))
    return net


def no_condition(images: Tensor) -> Tensor:
    """Make the condition (B, 0) of unconditional images (B, …)."""
    return torch.zeros(len(images), 0, device=images.device)
