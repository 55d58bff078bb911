"""Train, save and load the small models of Figure 1.

``fm`` is a velocity field of two points learned by flow matching. ``mle<k>-<coupling>`` are velocity fields of eight
points learned by the reconstruction loss alone, from scratch. ``follow-contracting`` and ``follow-free<k>`` are systems
that imitate the velocities of a curve; the first is contracting for all parameters. ``settle`` is a system that learns
to bring each state to one of two places.
"""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.flow.coupling import make_coupling
from pipeline.flow.marginal import eight_points, two_points
from pipeline.flow.path import i_cfm
from pipeline.nets.registry import build_net
from pipeline.ode.fixed_step import Field, solve, uniform_grid
from pipeline.settings.schema import Optimization, ToySettings
from pipeline.stability.parameterization import (
    ACTIVATIONS,
    ContractingFlow,
    Parameterization,
    UnconstrainedSystem,
)
from pipeline.tasks.toys import CLOCK, LAP, SETTLING_TIME, DrivenSystem, clock, curve, curve_velocity, place_of
from pipeline.training.loop import Batches, Log, Objective, train
from pipeline.training.mle import Reconstruction
from pipeline.training.pretrain import FlowMatching
from pipeline.utils.atomic import write_bytes
from pipeline.utils.errors import UserError
from pipeline.utils.seeding import Generators, derive

_ROWS = 4096  # of the tables that the systems' training batches are drawn from
_SETTLING_STEPS = 20
_FUNCTION = "tanh"


class Driven(nn.Module):
    """System x' = A0 x + A1 tanh(W x) + g with the input g = gain · u + offset.

    Args:
        source: parameters of the matrices. inputs: dimension of u.
    """

    def __init__(self, source: Parameterization, inputs: int) -> None:
        super().__init__()
        self.source = source
        self.gain = nn.Parameter(torch.randn(source.n, inputs) / math.sqrt(max(1, inputs)))
        self.offset = nn.Parameter(torch.zeros(source.n))

    def begin(self, u: Tensor) -> Field:
        """Return the field for the inputs u (B, m), which are constant along a solve."""
        linear, outer, inner = self.source.matrices()
        pushed = u @ self.gain.T + self.offset

        def field(_t: float, x: Tensor) -> Tensor:
            moved = x @ linear.T + pushed
            for name, a, w in zip(self.source.functions, outer, inner, strict=True):
                moved = moved + ACTIVATIONS[name](x @ w.T) @ a.T
            return moved

        return field

    @torch.no_grad()
    def exported(self) -> DrivenSystem:
        """Return the system in float64, with the certificate of its construction if there is one."""
        system = self.source.system()
        gain, offset = self.gain.double().numpy(), self.offset.double().numpy()
        if not isinstance(self.source, ContractingFlow):
            return DrivenSystem(system, gain, offset)
        metric, multipliers = self.source.certificate_matrices()
        return DrivenSystem(system, gain, offset, self.source.rate, metric.numpy(), torch.cat(multipliers).numpy())


class _Imitation(Objective):
    """Velocity matching: mean squared error of x' at the states of a demonstration alone."""

    net: Driven

    def __init__(self, net: Driven) -> None:
        super().__init__()
        self.net = net

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """Return the scalar loss. condition: u, (B, m). data: state and velocity, (B, 2, n)."""
        state, velocity = data.unbind(1)
        return (self.net.begin(condition)(0.0, state) - velocity).square().mean()


class _Settling(Objective):
    """Mean squared distance of states to their places, at half of the settling time and at its end."""

    net: Driven

    def __init__(self, net: Driven) -> None:
        super().__init__()
        self.net = net
        self.grid = uniform_grid(_SETTLING_STEPS, end=SETTLING_TIME)

    def forward(self, condition: Tensor, data: Tensor) -> Tensor:
        """Return the scalar loss. condition: places, (B, n). data: starts, (B, n)."""
        half, field = _SETTLING_STEPS // 2, self.net.begin(data.new_zeros(len(data), 0))
        middle = solve(field, data, self.grid[: half + 1])
        end = solve(field, middle, self.grid[half:])
        return ((middle - condition).square().mean() + (end - condition).square().mean()) / 2


def toy_names(settings: ToySettings) -> list[str]:
    """List the names of all models of the figure."""
    return ["fm", *mle_names(settings), "follow-contracting", *free_names(settings), "settle"]


def mle_names(settings: ToySettings) -> list[str]:
    """List a name for each coupling; a repeated coupling gives models of different initial weights."""
    return [f"mle{k}-{coupling}" for k, coupling in enumerate(settings.couplings)]


def free_names(settings: ToySettings) -> list[str]:
    """List the names of the unconstrained systems that follow the curve, of different initial weights."""
    return [f"follow-free{k}" for k in range(settings.free)]


def build_toy(name: str, settings: ToySettings) -> nn.Module:
    """Build the untrained model ``name`` with weights drawn from the seed and the name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(settings.seed, "toys", name))
        if name == "fm":
            return build_net(settings.net, horizon=1, action_dim=1, condition_dim=1)
        if name.startswith("mle"):
            return build_net(settings.net, horizon=1, action_dim=2, condition_dim=1)
        if name == "follow-contracting":
            return Driven(ContractingFlow(2, [settings.width], [_FUNCTION], settings.rate), CLOCK)
        return Driven(UnconstrainedSystem(2, [settings.width], [_FUNCTION]), CLOCK if name != "settle" else 0)


def train_toy(name: str, settings: ToySettings, state: Path, log: Log) -> nn.Module:
    """Train the model ``name``, resumably in the file ``state``."""
    generators = Generators(settings.seed, "toys", name)
    objective, batches, optimization = _problem(name, build_toy(name, settings), settings, generators)
    average = train(objective, batches, optimization, generators, log=log, state_path=state, title=name)
    return average.cpu().eval()


def _problem(
    name: str, net: nn.Module, settings: ToySettings, generators: Generators
) -> tuple[Objective, Batches, Optimization]:
    """Return the objective, the batches and the optimiser settings of ``net``."""
    if name == "fm":
        matching = FlowMatching(net, i_cfm(settings.sigma), make_coupling("independent"), generators)
        return matching, _unconditional(two_points()), settings.fm
    if name.startswith("mle"):
        coupling = make_coupling(name.partition("-")[2], settings.candidates)
        return Reconstruction(net, coupling, settings.nfe, generators), _unconditional(eight_points()), settings.mle
    assert isinstance(net, Driven)
    if name == "settle":
        starts = torch.randn(_ROWS, 2, generator=generators["starts"])
        return _Settling(net), Batches(place_of(starts), starts), settings.settle
    times = torch.arange(_ROWS) * (LAP / _ROWS)
    shown = torch.stack([curve(times), curve_velocity(times)], dim=1)
    return _Imitation(net), Batches(clock(times), shown), settings.follow


def _unconditional(points: Tensor) -> Batches:
    """Return points (M, D) as samples of one step, with a zero condition."""
    data = points.float()[:, None, :]
    return Batches(data.new_zeros(len(data), 1), data)


def save_toy(path: Path, net: nn.Module) -> None:
    """Write the weights of ``net`` to ``path``, atomically; equal models give equal bytes."""
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in net.state_dict().items()}))


def load_toy(path: Path, name: str, settings: ToySettings) -> nn.Module:
    """Load the model ``name`` that ``save_toy`` wrote.

    Raises:
        UserError: the file is missing, or its weights do not fit ``settings``.
    """
    net = build_toy(name, settings)
    try:
        net.load_state_dict(load(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; it is made by `dvc repro train_toys`") from None
    except (SafetensorError, RuntimeError) as error:
        detail = " ".join(str(error).split())
        raise UserError(f"{path}: not the model that params.yaml describes under toys: {detail:.300}") from None
    return net.eval()


def load_toys(folder: Path, settings: ToySettings) -> tuple[dict[str, Field], dict[str, DrivenSystem]]:
    """Load all trained flows, as fields (B, D) → (B, D) in float64, and all trained systems, by name.

    The files are <name>.safetensors in ``folder``.

    Raises:
        UserError: as ``load_toy``.
    """
    models = {name: load_toy(folder / f"{name}.safetensors", name, settings) for name in toy_names(settings)}
    systems = {name: net.exported() for name, net in models.items() if isinstance(net, Driven)}
    return {name: _flow_field(net) for name, net in models.items() if name not in systems}, systems


def _flow_field(net: nn.Module) -> Field:
    exact = net.double()

    def field(t: float, x: Tensor) -> Tensor:
        return exact(x.new_full((1,), t), x[:, None, :], x.new_zeros(1, 1))[:, 0]

    return field
