"""One-step baselines: the losses of their papers and reference code, and sampling by Euler steps."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.objective import reconstruct
from pipeline.ode.fixed_step import uniform_grid
from pipeline.training.one_step_baselines import (
    Drifting,
    GeneratorField,
    ImplicitMaximumLikelihood,
    MinimalIterative,
    MinimalIterativeField,
    Regression,
    RegressionField,
    drifting_loss,
)
from pipeline.utils.seeding import Generators


class Affine(nn.Module):
    """f(t, x, c) = a x + b t + c, which depends on every argument."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        return self.a * x + self.b * t[:, None, None] + condition[:, :1, None]


CONDITION = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
DATA = torch.linspace(-1, 1, 18, dtype=torch.float64).view(3, 3, 2)
NOISE = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
GUESS = CONDITION[:, :, None].expand(3, 3, 2)  # f(0, 0, c) = c


def test_regression_sees_neither_noise_nor_time() -> None:
    assert Regression(Affine())(CONDITION, DATA).item() == pytest.approx((GUESS - DATA).square().mean().item())
    sample = reconstruct(RegressionField(Affine()), NOISE, CONDITION, uniform_grid(1))
    assert torch.allclose(sample, GUESS)


def test_mip_sample_is_a_refined_guess() -> None:
    mended = 0.3 * 0.9 * GUESS + 2.0 * 0.9 + GUESS
    sample = reconstruct(MinimalIterativeField(Affine()), NOISE, CONDITION, uniform_grid(2))
    assert torch.allclose(sample, mended)


def test_mip_loss_is_that_of_the_paper() -> None:
    z = torch.randn(DATA.shape, generator=Generators(0)["noise"], dtype=torch.float64)
    mended = 0.3 * (0.9 * DATA + 0.1 * z) + 2.0 * 0.9 + GUESS
    expected = (GUESS - DATA).square().mean() + (mended - DATA).square().mean()
    assert MinimalIterative(Affine(), Generators(0))(CONDITION, DATA).item() == pytest.approx(expected.item())


def test_mip_code_variant_adds_noise_without_scaling_and_weights_both_errors() -> None:
    z = torch.randn(DATA.shape, generator=Generators(0)["noise"], dtype=torch.float64)
    mended = 0.3 * (DATA + 0.1 * z) + 2.0 * 0.9 + GUESS
    expected = (GUESS - DATA).square().mean() / 0.81 + (mended - DATA).square().mean() / 0.01
    assert MinimalIterative(Affine(), Generators(0), "code")(CONDITION, DATA).item() == pytest.approx(expected.item())
    sample = reconstruct(MinimalIterativeField(Affine(), "code"), NOISE, CONDITION, uniform_grid(2))
    assert torch.allclose(sample, 0.3 * GUESS + 2.0 * 0.9 + GUESS)


def imle_by_loops(samples: int, threshold: float) -> tuple[float, list[int]]:
    """Return IMLE Policy's loss, sample by sample as its authors write it, and the data that count."""
    noise = torch.randn(3 * samples, 3, 2, generator=Generators(0)["noise"], dtype=torch.float64).view(3, samples, 3, 2)
    distance = [[float((0.3 * z + CONDITION[b] - DATA[b]).norm()) for z in noise[b]] for b in range(3)]
    farthest = max(max(row) for row in distance)
    least = [min(d + farthest * (d <= threshold) for d in row) for row in distance]
    counted = [b for b in range(3) if least[b] < farthest]
    return sum(least[b] for b in counted) / max(1, len(counted)), counted


@pytest.mark.parametrize(("threshold", "counted"), [(0.0, 3), (1.7, 2), (9.0, 0)])
def test_imle_pulls_the_nearest_sample_beyond_the_threshold(threshold: float, counted: int) -> None:
    expected, data = imle_by_loops(4, threshold)
    assert len(data) == counted
    objective = ImplicitMaximumLikelihood(Affine(), 4, threshold / 6**0.5, Generators(0))
    loss = objective(CONDITION, DATA)
    assert loss.item() == pytest.approx(expected)
    assert objective.metrics["used_share"].item() == pytest.approx(counted / 3)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in objective.parameters())


def test_one_euler_step_of_a_generator_field_is_the_generators_sample() -> None:
    sample = reconstruct(GeneratorField(Affine()), NOISE, CONDITION, uniform_grid(1))
    assert torch.allclose(sample, 0.3 * NOISE + GUESS)


def drifts_by_loops(made: torch.Tensor, positive: torch.Tensor, scales: list[float]) -> float:
    """Return the loss of one set, (B, G, S) and (B, P, S), weight by weight."""
    conditions, count, size = made.shape
    targets = torch.cat([made, positive], dim=1)
    distance = [[[max(float((x - y).norm()), 1e-4) for y in targets[b]] for x in made[b]] for b in range(conditions)]
    mean = float(torch.tensor(distance, dtype=torch.float64).mean())
    x, y = made / (mean / size**0.5), targets / (mean / size**0.5)
    total = torch.zeros_like(x)
    for scale in scales:
        move = torch.zeros_like(x)
        for b in range(conditions):
            relative = torch.tensor(distance[b], dtype=torch.float64) / mean
            relative[range(count), range(count)] += 100
            weight = torch.exp(-relative / scale)
            weight = ((weight / weight.sum(1, keepdim=True)) * (weight / weight.sum(0, keepdim=True))).clamp(min=1e-6)
            weight = weight.sqrt()
            for i in range(count):
                near, far = weight[i, count:].sum(), weight[i, :count].sum()
                attraction = sum(
                    weight[i, count + p] * far * (y[b, count + p] - x[b, i]) for p in range(len(positive[b]))
                )
                repulsion = sum(weight[i, j] * near * (y[b, j] - x[b, i]) for j in range(count))
                move[b, i] = attraction - repulsion
        total += move / move.square().mean().sqrt()
    return float(total.square().mean())


def test_drifting_loss_equals_a_loop_over_all_weights() -> None:
    generator = torch.Generator().manual_seed(2)
    made = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    positive = torch.randn(2, 3, 2, 5, generator=generator, dtype=torch.float64)
    expected = [drifts_by_loops(made[n], positive[n], [0.2, 0.5]) for n in range(2)]
    assert drifting_loss(made, positive, [0.2, 0.5]).item() == pytest.approx(sum(expected) / 2)


@pytest.mark.parametrize("per_step", [True, False])
def test_drifting_moves_samples_to_their_own_datum_and_no_other(per_step: bool) -> None:

    class Table(nn.Module):
        """f(t, z, c): a location for each of three conditions plus noise of learned size."""

        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.zeros(3, 3, 2))
            self.size = nn.Parameter(torch.tensor(1.0))

        def forward(self, _t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
            rows = torch.searchsorted(torch.tensor([-1.0, 0.75]), condition[:, 0].contiguous())
            return self.place[rows] + self.size * x

    net = Table()
    objective = Drifting(net, 8, [0.02, 0.05, 0.2], Generators(0), per_step=per_step)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    condition, data = CONDITION.float(), DATA.float()
    for _ in range(300):
        optimizer.zero_grad()
        objective(condition, data).backward()
        optimizer.step()
    own = net.place[torch.searchsorted(torch.tensor([-1.0, 0.75]), condition[:, 0].contiguous())]
    assert (own - data).abs().mean() < 0.1
    assert torch.cdist(own.flatten(1), data.flatten(1)).argmin(1).tolist() == list(range(len(data)))
