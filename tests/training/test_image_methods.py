"""Image methods: scaled fields, expected losses and dropout."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.image_methods import DATA_DEVIATION, FLOW_METHODS, ScaledField, make_field, path_of
from pipeline.settings import schema
from pipeline.settings.images import ImageMethod
from pipeline.training.image_methods import pretraining
from pipeline.utils.seeding import Generators

SETTINGS = schema.load().starter.image_task("digits").pretrain


class Zero(nn.Module):
    def forward(self, _t: Tensor, x: Tensor, _condition: Tensor) -> Tensor:
        return 0 * x


@pytest.mark.parametrize("method", ["vp_fm", "ve_fm"])
def test_scaled_field_has_unit_variance_inputs_and_targets(method: ImageMethod) -> None:
    path = path_of(method, SETTINGS)
    generator = torch.Generator().manual_seed(0)
    x1 = DATA_DEVIATION * torch.randn(40_000, 1, generator=generator)
    x0, t = torch.randn(40_000, 1, generator=generator), torch.full((40_000,), 0.3)
    x_t, target = path.sample(x0, x1, t)
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def forward(self, _t: Tensor, x: Tensor, _condition: Tensor) -> Tensor:
            seen.append(x)
            return x

    field = ScaledField(Watching(), path)
    field(t, x_t, x_t[:, :0])
    assert seen[0].std() == pytest.approx(1.0, rel=0.02)
    assert (target / field.rate(t)[:, None]).std() == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("method", ["ddpm", *FLOW_METHODS])
def test_loss_of_a_zero_net_is_the_variance_of_its_target(method: ImageMethod) -> None:
    field = make_field(Zero(), method, SETTINGS)
    objective = pretraining(method, field, SETTINGS, Generators(0))
    data = DATA_DEVIATION * torch.randn(20_000, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    if method == "ot_cfm":
        data = data[:500]
    loss = objective(torch.zeros(len(data), 0), data).item()
    known = {"ddpm": 1.0, "vp_fm": 1.0, "ve_fm": 1.0, "ot_fm": 1.25, "i_cfm": 1.25, "si": 1.25 * torch.pi**2 / 8}
    if method in known:
        assert loss == pytest.approx(known[method], rel=0.03)
    else:
        assert loss < 1.25  # coupled by optimal transport, noise is nearer to its datum


def test_rates_of_the_vp_path_are_finite_and_positive_up_to_its_end() -> None:
    field = make_field(Zero(), "vp_fm", SETTINGS)
    assert isinstance(field, ScaledField)
    rates = field.rate(torch.tensor([0.0, 0.5, 1 - 1e-5, 1 - 6e-8, 1.0]))
    assert rates.isfinite().all() and (rates > 0).all()


def test_dropout_draws_from_a_random_stream_that_resumes() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 4), nn.Unflatten(1, (1, 2, 2)))

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, _t: Tensor, x: Tensor, _condition: Tensor) -> Tensor:
            return self.net(x)

    data, condition = torch.randn(8, 1, 2, 2), torch.zeros(8, 0)
    generators = Generators(0)
    objective = pretraining("i_cfm", Field(), SETTINGS, generators)
    objective(condition, data)
    saved = generators.state_dict()
    torch.manual_seed(1)
    after = objective(condition, data)
    generators.load_state_dict(saved)
    torch.manual_seed(2)
    assert torch.equal(objective(condition, data), after)
    assert not torch.equal(objective(condition, data), after)
    assert {id(p) for p in objective.parameters()} == {id(p) for p in net.parameters()}
