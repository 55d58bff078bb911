"""Image models: exact counts of evaluations, and the samples of each kind."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.evaluation.image_models import DiffusionModel, FlowModel, ImageModel, ResidualModel
from pipeline.nets.residual import PlainResidual

NOISE = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Counting(nn.Module):
    """x' = rate · x, or the prediction of that as noise, which counts its calls."""

    def __init__(self, rate: float = -1.0) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))
        self.calls = 0

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        assert t.shape == (len(x),) and condition.shape == (len(x), 0)
        self.calls += 1
        return self.rate * x


@torch.no_grad()
def sample(model: ImageModel, solver: str, seed: int = 0) -> tuple[Tensor, float]:
    return model.sample(NOISE, solver, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("solver", ["euler-1", "euler-8", "euler-100", "dopri5"])
@pytest.mark.parametrize("kind", [FlowModel, DiffusionModel])
def test_reported_nfe_equals_the_calls_of_the_net(kind: type[FlowModel | DiffusionModel], solver: str) -> None:
    field = Counting(0.1)
    _, nfe = sample(kind(field), solver)
    assert nfe == field.calls
    assert solver == "dopri5" or nfe == int(solver.removeprefix("euler-"))


def test_flow_samples_solve_the_ode_from_scaled_noise() -> None:
    exact = 5.0 * NOISE * torch.tensor(-1.0).exp()
    adaptive, _ = sample(FlowModel(Counting(), scale=5.0, tolerance=1e-7), "dopri5")
    torch.testing.assert_close(adaptive, exact, atol=1e-5, rtol=1e-5)
    four, _ = sample(FlowModel(Counting(), scale=5.0), "euler-4")
    torch.testing.assert_close(four, 5.0 * NOISE * 0.75**4)


def test_ancestral_sampling_draws_from_its_generator_and_the_ode_does_not() -> None:
    model = DiffusionModel(Counting(0.5))
    assert not torch.equal(sample(model, "euler-4", 0)[0], sample(model, "euler-4", 1)[0])
    assert torch.equal(sample(model, "euler-4", 0)[0], sample(model, "euler-4", 0)[0])
    assert torch.equal(sample(model, "dopri5", 0)[0], sample(model, "dopri5", 1)[0])


@pytest.mark.parametrize("solver", ["euler-6", "dopri5"])
def test_residual_steps_are_counted_and_follow_the_base_solve(solver: str) -> None:
    base, after = Counting(-1.0), Counting(0.5)
    model = ResidualModel(FlowModel(base), PlainResidual(after), [1.0, 1.5, 2.0])
    images, nfe = sample(model, solver)
    assert after.calls == 2 and nfe == base.calls + 2
    assert model.least_nfe == 3
    alone, _ = sample(FlowModel(base), "euler-4" if solver == "euler-6" else solver)
    torch.testing.assert_close(images, alone * 1.25**2)
