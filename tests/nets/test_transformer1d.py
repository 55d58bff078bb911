"""The transformer over actions: attention masks, dropout, gradients through solves, and size."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.objective import reconstruct
from pipeline.nets.transformer1d import Transformer1D
from pipeline.ode.fixed_step import uniform_grid
from pipeline.utils.errors import UserError

SMALL = {"width": 32, "depth": 2, "heads": 4, "dropout": 0.1, "condition_tokens": 2, "time_features": 8}


def make(*, causal: bool = False, **changed: float) -> Transformer1D:
    torch.manual_seed(0)
    return Transformer1D(8, 2, 6, causal=causal, **(SMALL | changed))  # type: ignore[arg-type]


def inputs(batch: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(batch, generator=generator)
    x, c = torch.randn(batch, 8, 2, generator=generator), torch.randn(batch, 6, generator=generator)
    return t.to(dtype), x.to(dtype), c.to(dtype)


@pytest.mark.parametrize("causal", [False, True])
def test_actions_attend_to_the_whole_condition_and_if_causal_to_no_later_action(causal: bool) -> None:
    net = make(causal=causal).eval()
    t, x, c = inputs()
    of_actions = torch.autograd.functional.jacobian(lambda x: net(t, x, c)[0].sum(1), x)[:, 0]
    reached = of_actions.abs().sum(2) > 0
    assert torch.equal(reached, torch.ones(8, 8).tril().bool() if causal else torch.ones(8, 8).bool())
    of_condition = torch.autograd.functional.jacobian(lambda c: net(t, x, c).sum(2), c)
    assert (of_condition[0, :, 0].abs() > 0).all()
    assert not of_condition[0, :, 1:].any(), "rows of a batch do not mix"


@torch.no_grad()
def test_a_field_is_shaped_as_the_state_and_depends_on_every_input() -> None:
    net = make().eval()
    t, x, c = inputs()
    velocity = net(t, x, c)
    assert velocity.shape == x.shape
    for other in ((t + 0.01, x, c), (t, x + 0.1, c), (t, x, c + 0.1), (t, x.flip(1), c), (t, x, c.roll(3, 1))):
        assert (net(*other) - velocity).flatten(1).abs().amax(1).min() > 1e-5


@pytest.mark.parametrize("causal", [False, True])
def test_every_weight_has_a_gradient_and_layers_start_differently(causal: bool) -> None:
    net = make(causal=causal)
    net(*inputs()).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    first, second = (dict(layer.named_parameters()) for layer in net.decoder.layers)
    assert not any(torch.equal(first[name], second[name]) for name in first if first[name].dim() > 1)


@torch.no_grad()
def test_dropout_acts_in_training_only() -> None:
    net, given = make(dropout=0.5).double(), inputs(dtype=torch.float64)
    assert not torch.equal(net(*given), net(*given))
    net.eval()
    expected = net(*given)
    assert torch.equal(net(*given), expected)
    torch.testing.assert_close(make(dropout=0.0).double()(*given), expected, rtol=0, atol=1e-12)
    with torch.inference_mode():
        torch.testing.assert_close(net.eval()(*given), expected, rtol=0, atol=1e-12)


def test_the_gradient_through_a_solve_of_several_steps_is_exact() -> None:
    net = make(causal=True).double().eval()
    _, x, c = inputs(dtype=torch.float64)
    weight = net.decoder.layers[0].linear1.weight  # type: ignore[union-attr]

    def loss(gradient: str = "direct") -> Tensor:
        return reconstruct(net, x, c, uniform_grid(4), gradient=gradient).square().sum()  # type: ignore[arg-type]

    (direct,) = torch.autograd.grad(loss(), weight)
    (checkpointed,) = torch.autograd.grad(loss("checkpointed"), weight)
    torch.testing.assert_close(checkpointed, direct)
    along, step = torch.randn_like(weight), 1e-5
    with torch.no_grad():
        weight += step * along
        above = loss()
        weight -= 2 * step * along
        below = loss()
    assert ((above - below) / (2 * step)).item() == pytest.approx((direct * along).sum().item(), rel=1e-6)


def test_transformer_has_finite_gradients_under_autocast() -> None:
    net = make(causal=True, dropout=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        velocity = net(*inputs())
    torch.testing.assert_close(velocity.float(), net(*inputs()), rtol=0.05, atol=0.05)
    velocity.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"heads": 5}, r"^heads: given 5, allowed: divisors of width = 32$"),
        (
            {"condition_tokens": 4},
            r"^condition_tokens: given 4, allowed: divisors of the 6 numbers that condition the net$",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changed: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**changed)


def test_parameter_count_is_the_references_plus_a_time_projection() -> None:
    # TransformerForDiffusion of width w: embeddings, positions, the condition's MLP, decoder layers, and the head
    w, depth, action, condition, horizon, features = 512, 6, 20, 59, 16, 256
    attention, norm, mlp = 4 * (w * w + w), 2 * w, 2 * 4 * w * w + 5 * w
    reference = (action + condition + 2) * w + (horizon + 1 + 2) * w + mlp
    reference += depth * (2 * attention + mlp + 3 * norm) + norm + (w + 1) * action
    with torch.device("meta"):
        net = Transformer1D(
            horizon,
            action,
            2 * condition,
            width=w,
            depth=depth,
            heads=8,
            dropout=0.1,
            causal=True,
            condition_tokens=2,
            time_features=features,
        )
    assert sum(p.numel() for p in net.parameters()) == reference + (features + 1) * w
    assert isinstance(net, nn.Module) and (features + 1) * w < 0.01 * reference
