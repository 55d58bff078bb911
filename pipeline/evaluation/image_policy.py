"""A policy with camera images: it renders the camera's image of a state and encodes it once for each plan."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.evaluation.policy import FlowPolicy
from pipeline.nets.vision import ImageConditioned, VisionEncoder
from pipeline.tasks.normalizer import Normalizer
from pipeline.tasks.types import Observe

Draw = Callable[[NDArray[np.floating]], NDArray[np.uint8]]
"""Raw simulator states (…, S) → images (…, H, W, 3)."""


class ImageConditioning(nn.Module):
    """An ``Observe`` with images: raw states (…, S) → the image's features, then the other numbers, (…, F + P) float32.

    It is a module of the policy, so it is stored and moved with it, and every user of ``policy.observe`` has it.

    Args:
        encoder: from images to F features. draw: the camera. observe: the P numbers beside the image.
    """

    def __init__(self, encoder: VisionEncoder, draw: Draw, observe: Observe) -> None:
        super().__init__()
        self.encoder = encoder
        self.draw = draw
        self.observe = observe

    @torch.no_grad()
    def forward(self, states: NDArray[np.floating]) -> NDArray[np.float32]:
        images = torch.from_numpy(self.draw(states)).to(next(self.encoder.parameters()).device)
        features = self.encoder(images).float().cpu().numpy()
        return np.concatenate([features, self.observe(states)], axis=-1)


class ImagePolicy(FlowPolicy):
    """A ``FlowPolicy`` conditioned on an encoder's features of images.

    ``net`` is only the field. So a solve never encodes, fine-tuning leaves the encoder frozen, and code for a policy's
    field and conditions works here too. ``seeing`` is the field with its encoder, for training both.

    Args:
        net: v(t (B,), x (B, horizon, A), c (B, n_obs_steps · (F + P))).
        conditioning: the encoder, the camera, and the numbers beside the image.
        numbers_normalizer, action_normalizer: fitted on training data; P and A components.
        n_obs_steps, horizon, n_action_steps, solver, temperature: as of ``FlowPolicy``.
    """

    observe: ImageConditioning

    def __init__(
        self,
        net: nn.Module,
        conditioning: ImageConditioning,
        numbers_normalizer: Normalizer,
        action_normalizer: Normalizer,
        *,
        n_obs_steps: int,
        horizon: int,
        n_action_steps: int,
        solver: str = "euler",
        temperature: float = 1.0,
    ) -> None:
        super().__init__(
            net,
            conditioning,
            beside_features(numbers_normalizer, conditioning.encoder.features),
            action_normalizer,
            n_obs_steps=n_obs_steps,
            horizon=horizon,
            n_action_steps=n_action_steps,
            solver=solver,
            temperature=temperature,
        )

    def seeing(self) -> ImageConditioned:
        """Return the encoder and the field as one field of packed conditions; it shares their weights."""
        numbers = len(self.observation_normalizer.offset) - self.observe.encoder.features
        return ImageConditioned(self.observe.encoder, self.net, horizon=self.n_obs_steps, n_numbers=numbers)

    def with_net(self, net: nn.Module) -> FlowPolicy:
        """Replace the policy's net by a field, or by a field with its encoder (``ImageConditioned``)."""
        if isinstance(net, ImageConditioned):
            self.observe.encoder = net.encoder
            net = net.field
        return super().with_net(net)


def beside_features(numbers: Normalizer, features: int) -> Normalizer:
    """Make a normaliser that leaves the first ``features`` numbers unchanged and applies ``numbers`` to the rest."""
    return Normalizer.of(
        torch.cat([torch.zeros(features), numbers.offset.cpu()]), torch.cat([torch.ones(features), numbers.scale.cpu()])
    )
