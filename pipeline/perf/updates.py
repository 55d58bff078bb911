"""Time updates of a net, by flow matching and by MLE through the solve, against training as scripts commonly do it.

Ours is the training loop itself, timed from one draw of a batch to the next. The peer takes its step in between.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Literal, Self

import torch
from torch import Tensor, nn

from pipeline.flow.coupling import independent
from pipeline.flow.path import i_cfm
from pipeline.nets.registry import build_net
from pipeline.nets.torchcfm_unet import load_torchcfm_unet2d
from pipeline.perf.common_training import CommonTraining, Loss, common_matching, odeint_loss
from pipeline.perf.comparison import Comparison, DiffersError, Floor, Seconds, median_seconds, nearly_equal, timed
from pipeline.settings import schema
from pipeline.settings.blocks import Unet1dSettings
from pipeline.settings.schema import NetSettings, Optimization
from pipeline.tasks.loader import load_task
from pipeline.training.loop import Objective, train
from pipeline.training.mle import Reconstruction
from pipeline.training.pretrain import FlowMatching
from pipeline.utils.precision import Precision, autocast, native
from pipeline.utils.seeding import Generators

HORIZON, ACTION_DIM, CONDITION_DIM = 16, 2, 36  # Push-T, two observations of its keypoints
UNET1D = Unet1dSettings(kind="unet1d", channels=[256, 512, 1024], kernel=5, groups=8, time_features=256)  # Table D.1
CHECKED = 3
"""Number of first steps in which both sides must have the same losses."""


@dataclass
class _Alternating:
    """A source that always gives the same batch, and lets the peer take its step whenever the loop draws one."""

    condition: Tensor
    data: Tensor
    peer: Callable[[], object]
    taken: list[Seconds] = field(default_factory=list)
    _peer_s: float = 0.0
    _begun: float | None = None

    def to(self, device: torch.device) -> Self:
        del device
        return self

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        del size, generator
        if self._begun is not None:
            self.taken.append((perf_counter() - self._begun, self._peer_s))
        self._peer_s = timed(self.peer)
        self._begun = perf_counter()
        return self.condition, self.data


def _train(
    objective: Objective, source: _Alternating, optimization: Optimization, generators: Generators | None = None
) -> None:
    with redirect_stderr(StringIO()):  # its progress bar would overwrite the suite's
        train(objective, source, optimization, generators or Generators(0))


def step_seconds(
    objective: Objective, condition: Tensor, data: Tensor, optimization: Optimization, steps: int
) -> list[float]:
    """Return the seconds of each of ``steps`` steps of the training loop on the same batch, after a warm-up step."""
    source = _Alternating(condition, data, lambda: None)
    _train(objective, source, optimization.model_copy(update={"steps": steps + 2}))
    return [ours for ours, _ in source.taken][1:]


@dataclass(frozen=True)
class Update:
    """An update of one net on one batch, by ours and by a peer.

    Attributes:
        nets: makes our net and the peer's, which have equal weights and compute the same. condition, data: the batch.
        objective: net, generators → our objective. loss: the peer's loss.
        optimization: settings of both; ``precision`` is only for ours, the peer uses float32.
        tolerance: for the losses of both in float32; more than rounding if the peer computes another gradient.
    """

    nets: Callable[[], tuple[nn.Module, nn.Module]]
    condition: Tensor
    data: Tensor
    objective: Callable[[nn.Module, Generators], Objective]
    loss: Loss
    optimization: Optimization
    tolerance: float = 1e-4

    def comparison(self, work: str, peer: str, aim: float, count: int, evaluations: int = 1) -> Comparison:
        """Make the comparison against the peer's update, for a net that is evaluated ``evaluations`` times in a row."""
        floor = Floor(
            f"{evaluations} × the net, forward and backward, in {self.optimization.precision}, and nothing else",
            partial(self._evaluations_s, evaluations),
        )
        return Comparison(work, peer, aim, self.same, self.turns, count, floor=floor)

    def turns(self, count: int) -> list[Seconds]:
        net, theirs = self.nets()
        common = CommonTraining(theirs, self.loss, self._steps(count + 1))
        drawn = self._drawn()
        source = _Alternating(self.condition, self.data, lambda: common.step(self.condition, self.data, *next(drawn)))
        _train(self.objective(net, Generators(0)), source, self._steps(count + 1))
        return source.taken

    def same(self) -> str:
        """Compare the losses of the first steps, both in float32, then ours in its own precision."""
        net, theirs = self.nets()
        steps = self._steps(CHECKED)
        common, drawn = CommonTraining(theirs, self.loss, steps), self._drawn()
        expected = [common.step(self.condition, self.data, *next(drawn)) for _ in range(CHECKED)]
        start = copy.deepcopy(net.state_dict())
        equal = nearly_equal(self._losses(net, "fp32"), expected, self.tolerance, f"losses of {CHECKED} steps in fp32")
        if self.optimization.precision == "fp32":
            return equal
        net.load_state_dict(start)
        return f"{equal}; {nearly_equal(self._losses(net, 'bf16'), expected, 2e-2, 'in bf16')}"

    def _evaluations_s(self, count: int) -> float:
        net, _ = self.nets()
        t = torch.rand(len(self.data))

        def update() -> None:
            x = self.data
            with autocast(x.device.type, self.optimization.precision):
                for _ in range(count):
                    x = x + net(t, x, self.condition) / count
            torch.autograd.grad(x, list(net.parameters()), torch.ones_like(x))

        return median_seconds(update)

    def _losses(self, net: nn.Module, precision: Precision) -> list[float]:
        generators, losses = Generators(0), list[float]()
        objective = self.objective(net, generators)
        objective.register_forward_hook(lambda _module, _inputs, loss: losses.append(loss.item()))
        source = _Alternating(self.condition, self.data, lambda: None)
        _train(objective, source, self._steps(CHECKED).model_copy(update={"precision": precision}), generators)
        return losses

    def _steps(self, steps: int) -> Optimization:
        return self.optimization.model_copy(update={"steps": steps})

    def _drawn(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the noise and times that the objective draws, for the peer."""
        generators = Generators(0)
        while True:
            noise = torch.randn(self.data.shape, generator=generators["noise"])
            yield noise, torch.rand(len(self.data), generator=generators["time"])


@dataclass(frozen=True)
class _AgainstOwn:
    """An MLE update through ``nfe`` Euler steps and ``nfe`` flow-matching updates, all of the same net and batch."""

    net: nn.Module
    condition: Tensor
    data: Tensor
    nfe: int

    def turns(self, count: int) -> list[Seconds]:
        return [(self._seconds(self._mle()), self.nfe * self._seconds(self._matching())) for _ in range(count)]

    def same(self) -> str:
        """Check that both make equally many evaluations of the net; their losses differ by definition."""
        evaluations = [self._evaluations(self._mle()), self.nfe * self._evaluations(self._matching())]
        if evaluations[0] != evaluations[1]:
            raise DiffersError(f"evaluations of the net: {evaluations[0]}, and {evaluations[1]} of the peer's")
        return f"equal evaluations of the net: {self.nfe}, each of {len(self.data)} windows"

    def _mle(self) -> Objective:
        return Reconstruction(self.net, independent, self.nfe, Generators(0))

    def _matching(self) -> Objective:
        return flow_matching(self.net, Generators(0))

    def _seconds(self, objective: Objective) -> float:
        return median(step_seconds(objective, self.condition, self.data, optimization(len(self.data)), 3))

    def _evaluations(self, objective: Objective) -> int:
        seen: list[int] = []
        hook = self.net.register_forward_hook(lambda _net, _inputs, made: seen.append(len(made)))
        objective(self.condition, self.data)
        hook.remove()
        return len(seen)


def random_batch(size: int, *shape: int, condition_dim: int) -> tuple[Tensor, Tensor]:
    """Draw condition (size, C) and data (size, …)."""
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, condition_dim, generator=generator), torch.randn(size, *shape, generator=generator)


def optimization(batch_size: int) -> Optimization:
    """Return the settings of all updates here; nothing is trained to the end."""
    precision = native()
    return Optimization(
        steps=1,
        batch_size=batch_size,
        lr=1e-4,
        weight_decay=0.0,
        warmup=0,
        max_grad_norm=1.0,
        ema_decay=0.999,
        precision=precision,
    )


def flow_matching(net: nn.Module, generators: Generators) -> Objective:
    """Make the pretraining objective."""
    return FlowMatching(net, i_cfm(0.0), independent, generators)


def _twice(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = make()
    return net, copy.deepcopy(net)


def unet1d_comparisons(sizes: tuple[int, ...] = (64, 256), net: NetSettings = UNET1D) -> Iterator[Comparison]:
    """Yield the comparisons of flow-matching steps of the paper's policy net."""
    for size in sizes:
        update = Update(
            partial(_twice, partial(build_net, net, HORIZON, ACTION_DIM, CONDITION_DIM)),
            *random_batch(size, HORIZON, ACTION_DIM, condition_dim=CONDITION_DIM),
            flow_matching,
            common_matching,
            optimization(size),
        )
        work = f"FM training step, ConditionalUnet1D, horizon {HORIZON}, batch {size}"
        yield update.comparison(work, "the step of diffusers' and LeRobot's scripts, same net", 0.6, 5)


def unet2d_comparisons(batch_size: int = 16, channels: int = 128) -> Iterator[Comparison]:
    """Yield the comparison of flow-matching steps of TorchCFM's net for CIFAR-10, of 128 channels in level one."""
    from torchcfm.models.unet.unet import UNetModelWrapper  # in the optional dependency group peers

    def nets() -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        theirs = UNetModelWrapper(
            dim=(3, 32, 32),
            num_res_blocks=2,
            num_channels=channels,
            channel_mult=[1, 2, 2, 2],
            num_heads=4,
            num_head_channels=64,
            attention_resolutions="16",
            dropout=0.0,  # else losses could not be compared
        )
        for parameter in theirs.parameters():  # parts of the net start at zero, so that other parts would not matter
            nn.init.normal_(parameter, std=0.02)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.pt"
            torch.save({"ema_model": theirs.state_dict()}, path)
            return load_torchcfm_unet2d(path, channels=channels, dropout=0.0), theirs

    def loss(net: nn.Module, condition: Tensor, data: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return common_matching(lambda t, x, _c: net(t, x), condition, data, noise, time)  # type: ignore[arg-type]

    update = Update(
        nets, *random_batch(batch_size, 3, 32, 32, condition_dim=0), flow_matching, loss, optimization(batch_size)
    )
    yield update.comparison(
        f"FM training step, CIFAR-10 U-Net, batch {batch_size}", "TorchCFM's U-Net and step", 0.7, 5
    )


def mle_comparisons(nfes: tuple[int, ...] = (1, 8, 16), batch_size: int = 256) -> Iterator[Comparison]:
    """Yield the comparisons of MLE updates of lab's Push-T net through Euler steps."""
    settings = schema.load().lab.task("pusht")
    task, data = load_task("pusht"), settings.data
    condition_dim = data.n_obs_steps * task.observations[data.observation].dim
    make = partial(build_net, settings.net, data.horizon, task.action_dim, condition_dim)
    batch = random_batch(batch_size, data.horizon, task.action_dim, condition_dim=condition_dim)
    peers: dict[Literal["direct", "adjoint"], tuple[str, float, float]] = {  # with aim and tolerance
        "direct": ("torchdiffeq odeint", 0.7, 1e-4),
        "adjoint": ("torchdiffeq odeint_adjoint", 0.5, 1e-2),
    }
    for nfe in nfes:

        def objective(net: nn.Module, generators: Generators, nfe: int = nfe) -> Objective:
            return Reconstruction(net, independent, nfe, generators)

        work = f"MLE update, {nfe} Euler steps, lab's Push-T net, batch {batch_size}"
        for gradient, (peer, aim, tolerance) in peers.items():
            loss = odeint_loss(nfe, gradient)
            update = Update(partial(_twice, make), *batch, objective, loss, optimization(batch_size), tolerance)
            yield update.comparison(work, peer, aim, 15, evaluations=nfe)
        own = _AgainstOwn(make(), *batch, nfe)
        yield Comparison(work, f"{nfe} of its own FM updates", 1.1, own.same, own.turns, 9)
