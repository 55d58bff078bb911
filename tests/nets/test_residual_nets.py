"""Residual fields: zero before training, equal to the certified system, and step ratios."""

from typing import get_args

import numpy as np
import pytest
import torch

from pipeline.nets.persidskii import FixedMatrices, PersidskiiResidual
from pipeline.nets.residual import build_residual, longest_step, residual_grid, shorter_ratio, step_ratio
from pipeline.ode.fixed_step import solve, uniform_grid
from pipeline.settings.schema import MlpSettings, PersidskiiSettings, ResidualRecipe, StabilityKind, Unet1dSettings

HORIZON, ACTION, CONDITION = 4, 2, 3


def recipe(
    stability: str = "step", state: str = "chunk", *, sees_noise: bool = False, unet: bool = False
) -> ResidualRecipe:
    net: PersidskiiSettings | Unet1dSettings = PersidskiiSettings.model_validate(
        {
            "kind": "persidskii",
            "state": state,
            "widths": [3, 5],
            "functions": ["tanh", "softsign"],
            "stability": stability,
            "rate": 0.8,
            "penalty_weight": 1.0,
            "input": MlpSettings(kind="mlp", width=8, depth=1, expansion=1, time_features=4),
            "sees_noise": sees_noise,
        }
    )
    if unet:
        net = Unet1dSettings(kind="unet1d", channels=[8, 8], kernel=3, groups=2, time_features=4)
    coupling = {"coupling": "nearest", "candidates": 2, "regularization": 0.1, "condition_weight": 1.0}
    coupling |= {"typical_quantile": 0.9, "reflow_nfe": 8, "inversion_nfe": 8, "precomputed_pairs": 0}
    optimization = {"steps": 20, "batch_size": 8, "lr": 1e-2, "weight_decay": 0.0, "warmup": 1, "max_grad_norm": 1.0}
    optimization |= {"ema_decay": 0.0, "precision": "fp32", "guard_every": 10, "collapse_below": 0.0}
    return ResidualRecipe.model_validate(
        {
            "net": net,
            "end": 2.0,
            "residual_steps": 4,
            "grid": "uniform",
            "on_collapse": "warn",
            **coupling,
            **optimization,
        }
    )


def inputs(batch: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Anchor, condition, noise."""
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, HORIZON, ACTION), (batch, CONDITION), (batch, HORIZON, ACTION)
    anchor, condition, noise = (torch.randn(shape, generator=generator) for shape in shapes)
    return anchor, condition, noise


def disturbed(residual: PersidskiiResidual) -> PersidskiiResidual:
    """Return ``residual`` with a nonzero input net."""
    torch.manual_seed(1)
    torch.nn.init.normal_(residual.input_net.out.weight, std=0.3)
    return residual


def persidskii(*arguments: str, sees_noise: bool = False) -> PersidskiiResidual:
    torch.manual_seed(0)
    residual = build_residual(recipe(*arguments, sees_noise=sees_noise), HORIZON, ACTION, CONDITION)
    assert isinstance(residual, PersidskiiResidual)
    return residual


@pytest.mark.parametrize("state", ["chunk", "step"])
@pytest.mark.parametrize("stability", get_args(StabilityKind))
def test_untrained_residual_leaves_the_sample_unchanged(stability: str, state: str) -> None:
    anchor, condition, noise = inputs()
    residual = persidskii(stability, state, sees_noise=True)
    for net in (residual, residual.fixed()):
        end = solve(net.begin(anchor, condition, noise), anchor, uniform_grid(4, start=1.0, end=2.0))
        assert torch.equal(end, anchor)


def test_untrained_unet_residual_is_zero_and_has_gradients() -> None:
    anchor, condition, noise = inputs()
    residual = build_residual(recipe(unet=True), HORIZON, ACTION, CONDITION)
    velocity = residual.begin(anchor, condition, noise)(1.25, anchor)
    assert torch.equal(velocity, torch.zeros_like(anchor))
    (velocity - 1).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in residual.parameters())


def test_field_is_that_of_the_certified_system() -> None:
    anchor, condition, noise = (tensor.double() for tensor in inputs())
    residual = disturbed(persidskii("flow", "chunk")).fixed().double()
    assert isinstance(residual.source, FixedMatrices)
    system, field = residual.source.system(residual.functions), residual.begin(anchor, condition, noise)
    x = torch.randn(6, HORIZON, ACTION).double()
    g = field(1.0, torch.zeros_like(x)).flatten(1)  # f(0) = 0
    expected = system.field(x.flatten(1).numpy(), g.detach().numpy())
    np.testing.assert_allclose(field(1.0, x).detach().flatten(1).numpy(), expected, rtol=0, atol=1e-12)


def test_per_step_system_equals_the_block_diagonal_chunk_system() -> None:
    anchor, condition, noise = (tensor.double() for tensor in inputs())
    shared = disturbed(persidskii("flow", "step")).fixed()
    linear, outer, inner = shared.matrices()
    whole = FixedMatrices(HORIZON * ACTION, [HORIZON * len(w) for w in inner])
    whole.linear.copy_(torch.block_diag(*[linear] * HORIZON))
    for mine, given in zip([*whole.matrices()[1], *whole.matrices()[2]], [*outer, *inner], strict=True):
        mine.copy_(torch.block_diag(*[given] * HORIZON))
    chunk = PersidskiiResidual(whole, shared.functions, shared.input_net, sees_noise=False)
    x = torch.randn_like(anchor)
    of_both = [residual.eval().double().begin(anchor, condition, noise)(1.0, x) for residual in (shared, chunk)]
    torch.testing.assert_close(*of_both, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sees_noise", [False, True])
def test_residual_depends_on_the_noise_only_if_it_sees_it(sees_noise: bool) -> None:
    anchor, condition, noise = inputs()
    residual = disturbed(persidskii(sees_noise=sees_noise))
    same = torch.equal(
        residual.begin(anchor, condition, noise)(1.0, anchor), residual.begin(anchor, condition, -noise)(1.0, anchor)
    )
    assert same is not sees_noise


def test_autocast_leaves_the_matrices_in_full_precision() -> None:
    anchor, condition, noise = inputs()
    residual = persidskii("step", "chunk").fixed()
    x = torch.randn_like(anchor)
    plain = residual.begin(anchor, condition, noise)(1.0, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(residual.begin(anchor, condition, noise)(1.0, x), plain)


def test_step_ratio_follows_from_the_rate() -> None:
    given = recipe()
    assert longest_step(given) == 0.25
    assert isinstance(given.net, PersidskiiSettings)
    assert step_ratio(given.net, 0.25) ** 4 == pytest.approx(np.exp(-0.8))


def test_shorter_steps_contract_within_the_ratio_of_the_longest() -> None:
    early = recipe().model_copy(update={"grid": "early"})
    assert residual_grid(early) == [1.0, 1.0625, 1.25, 1.5625, 2.0]
    assert longest_step(early) == 0.4375
    jacobian, h, generator = np.array([[-1.0, 3.0], [-3.0, -1.0]]), 0.15, np.random.default_rng(0)
    ratio = np.linalg.norm(np.eye(2) + h * jacobian, 2)
    for share in generator.random(20):
        assert np.linalg.norm(np.eye(2) + share * h * jacobian, 2) <= shorter_ratio(ratio, share) + 1e-12
