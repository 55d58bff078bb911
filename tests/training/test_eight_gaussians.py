"""Eight Gaussians on a circle: the coupling decides how many modes survive fine-tuning."""

import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.coupling import independent, make_coupling
from pipeline.flow.path import i_cfm
from pipeline.nets.mlp import MLP
from pipeline.tasks.normalizer import Normalizer
from pipeline.training.collapse_stopping import CollapseStopping
from pipeline.training.data import PreparedData
from pipeline.training.diversity_monitor import DiversityMonitor, DiversityReading
from pipeline.training.loop import Batches, Objective, train
from pipeline.training.mle import Reconstruction
from pipeline.training.pretrain import FlowMatching
from pipeline.utils.seeding import Generators
from tests.training.helpers import optimization, vector_policy

NFE = 2
ANGLES = torch.arange(8) * math.pi / 4
CENTRES = 3 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)


def draw(rows: int) -> PreparedData:
    """Return points around the centres, with deviation 0.2 and a constant condition; a tenth is held out."""
    generator = torch.Generator().manual_seed(0)
    mode = torch.randint(8, (rows,), generator=generator)
    x = (CENTRES[mode] + 0.2 * torch.randn(rows, 2, generator=generator))[:, None]
    nothing, held_out = torch.zeros(rows, 1), rows // 10
    return PreparedData(
        nothing[held_out:], x[held_out:], nothing[:held_out], x[:held_out], Normalizer(1), Normalizer(2)
    )


DATA = draw(4000)


def fit(
    objective: Objective,
    generators: Generators,
    *,
    steps: int,
    lr: float,
    ema_decay: float,
    look: Callable[[int, nn.Module], bool] = lambda _step, _net: True,
) -> nn.Module:
    return train(
        objective,
        Batches(DATA.condition, DATA.action),
        optimization(steps=steps, lr=lr, ema_decay=ema_decay),
        generators,
        milestones=range(0, steps + 1, 50),
        on_milestone=look,
    )


@pytest.fixture(scope="module")
def base() -> nn.Module:
    """Train an I-CFM model."""
    torch.manual_seed(0)
    net = MLP(1, 2, 1, width=64, depth=1, expansion=2, time_features=16)
    generators = Generators(0)
    objective = FlowMatching(net, i_cfm(0.0), independent, generators)
    return fit(objective, generators, steps=1000, lr=3e-3, ema_decay=0.99)


def fine_tuned(base: nn.Module, coupling: str, steps: int, warnings: list[str]) -> nn.Module:
    """Fine-tune a copy of ``base``; collapse warnings go to ``warnings``."""
    generators = Generators(1)
    objective = Reconstruction(deepcopy(base), make_coupling(coupling), NFE, generators, teacher_nfe=16)
    monitor = DiversityMonitor(vector_policy(base, action=2), DATA, seed=0)

    def read(net: nn.Module) -> DiversityReading:
        return monitor.measure(vector_policy(net, action=2), NFE)

    stopping = CollapseStopping(read, read(base), steps, collapse_below=0.2, stop=False, warn=warnings.append)
    return fit(objective, generators, steps=steps, lr=1e-3, ema_decay=0.9, look=stopping.check)


def mode_shares(net: nn.Module, nfe: int) -> Tensor:
    """Return the share of samples within 0.8, four deviations, of each centre: (8,)."""
    noise = torch.randn(2000, 1, 2, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        samples = vector_policy(net, action=2).sample(torch.zeros(2000, 1), noise, nfe)[:, 0]
    return (torch.cdist(samples, CENTRES) < 0.8).float().mean(dim=0)


def reading(base: nn.Module, net: nn.Module) -> DiversityReading:
    return DiversityMonitor(vector_policy(base, action=2), DATA, seed=0).measure(vector_policy(net, action=2), NFE)


def test_the_base_model_has_eight_modes(base: nn.Module) -> None:
    assert mode_shares(base, 16).min() > 0.05


def test_independent_coupling_loses_all_modes_within_200_steps_and_warns(base: nn.Module) -> None:
    warnings: list[str] = []
    net = fine_tuned(base, "independent", 200, warnings)
    assert mode_shares(net, NFE).max() < 0.01
    assert reading(base, net).spread_ratio < 0.1
    assert warnings[0].startswith("the samples are collapsing: at step ")


@pytest.mark.parametrize("coupling", ["nearest", "reflow"])
def test_model_based_couplings_keep_all_modes_for_1000_steps(base: nn.Module, coupling: str) -> None:
    warnings: list[str] = []
    net = fine_tuned(base, coupling, 1000, warnings)
    assert warnings == []
    # two steps of the base model miss modes
    assert mode_shares(net, NFE).min() > 0.06 > mode_shares(base, NFE).min()
    assert reading(base, net).spread_ratio > 0.85
