"""The coupling decides whether fine-tuning keeps two modes, and the diversity monitor shows it."""

import pytest
import torch

from pipeline.flow.coupling import make_coupling
from pipeline.flow.path import i_cfm
from pipeline.nets.mlp import MLP
from pipeline.tasks.normalizer import Normalizer
from pipeline.training.data import PreparedData
from pipeline.training.diversity_monitor import DiversityMonitor
from pipeline.training.loop import Batches, train
from pipeline.training.mle import Reconstruction
from pipeline.training.pretrain import FlowMatching
from pipeline.utils.seeding import Generators
from tests.training.helpers import optimization, vector_policy


def two_modes() -> PreparedData:
    """Points (1, 2) samples wide, at (+1, c) or (−1, −c) for a condition c."""
    generator = torch.Generator().manual_seed(0)
    condition = 2 * torch.rand(1200, 1, generator=generator) - 1
    sign = torch.randint(0, 2, (1200, 1), generator=generator) * 2.0 - 1
    action = (torch.cat([sign, sign * condition], dim=1) + 0.05 * torch.randn(1200, 2, generator=generator))[:, None]
    return PreparedData(condition[200:], action[200:], condition[:200], action[:200], Normalizer(1), Normalizer(2))


DATA = two_modes()


def fit(objective: FlowMatching | Reconstruction, steps: int, lr: float) -> torch.nn.Module:
    settings = optimization(steps=steps, lr=lr)
    return train(objective, Batches(DATA.condition, DATA.action), settings, objective.generators)


@pytest.fixture(scope="module")
def base() -> torch.nn.Module:
    torch.manual_seed(0)
    net = MLP(1, 2, 1, width=48, depth=2, expansion=2, time_features=16)
    return fit(FlowMatching(net, i_cfm(0.0), make_coupling("independent", 1), Generators(0)), steps=700, lr=3e-3)


def test_ratios_of_the_base_model_to_itself_are_one(base: torch.nn.Module) -> None:
    reading = DiversityMonitor(vector_policy(base, action=2), DATA, seed=0).measure(
        vector_policy(base, action=2), nfe=16
    )
    assert reading.spread_ratio == reading.best_of_k_ratio == reading.reconstruction_ratio == 1
    assert reading.diversity.spread == pytest.approx(0.8, abs=0.2)


@pytest.mark.parametrize(("coupling", "kept"), [("independent", False), ("nearest", True)])
def test_independent_coupling_collapses_the_modes_and_nearest_keeps_them(
    base: torch.nn.Module, coupling: str, kept: bool
) -> None:
    monitor = DiversityMonitor(vector_policy(base, action=2), DATA, seed=0)
    net = MLP(1, 2, 1, width=48, depth=2, expansion=2, time_features=16)
    net.load_state_dict(base.state_dict())
    tuned = fit(Reconstruction(net, make_coupling(coupling, 8), 2, Generators(1)), steps=400, lr=2e-3)
    reading = monitor.measure(vector_policy(tuned, action=2), nfe=2)
    if kept:
        assert reading.spread_ratio > 0.8
        assert reading.diversity.best_of_k < 0.2
    else:
        assert reading.spread_ratio < 0.3
        assert reading.diversity.best_of_k > 0.4 and reading.best_of_k_ratio > 1.5
