"""Check the arguments of ``pipeline.training.fine_tune.fine_tune``."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal, get_args

from pydantic import ValidationError

from pipeline.flow.coupling import AHEAD, make_coupling
from pipeline.flow.covariance import COVARIANCES
from pipeline.flow.pairing import Coupling
from pipeline.ode.fixed_step import uniform_grid
from pipeline.ode.gradient import GRADIENTS, Gradient
from pipeline.settings.messages import line
from pipeline.settings.schema import Optimization, Solver
from pipeline.utils.precision import PrecisionSetting

SOLVERS: tuple[Solver, ...] = get_args(Solver)
_WATCHING = ("readings", "collapse_below", "on_collapse")  # the weights in training do not depend on them


@dataclass(frozen=True)
class Options:
    """Valid arguments of ``fine_tune``, which describes each.

    Raises:
        ValueError: an argument is not allowed; one line names it, the given value and the allowed ones.
    """

    nfe: int
    coupling: str | Coupling
    candidates: int
    teacher_nfe: int
    teacher_temperature: float
    solver: Solver
    gradient: Gradient
    last_steps: int | None
    covariance: str
    fm_weight: float
    energy_weight: float
    lora_rank: int
    lora_alpha: float
    steps: int
    batch_size: int
    lr: float
    ema_decay: float
    precision: PrecisionSetting
    readings: int
    collapse_below: float
    on_collapse: Literal["stop", "warn"]
    seed: int

    def __post_init__(self) -> None:
        _ = self.optimization
        check_choice("solver", self.solver, SOLVERS)
        check_choice("gradient", self.gradient, GRADIENTS)
        check_choice("covariance", self.covariance, tuple(COVARIANCES))
        for name in ("fm_weight", "energy_weight", "lora_rank", "teacher_temperature"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: given {getattr(self, name)}, allowed: 0 or more")
        check_choice("on_collapse", self.on_collapse, ("stop", "warn"))
        for name in ("nfe", "candidates", "readings", "teacher_nfe"):
            given = getattr(self, name)
            if not isinstance(given, int) or given < 1:
                raise ValueError(f"{name}: given {given}, allowed: whole numbers from 1")
        uniform_grid(self.nfe, self.solver)  # raises ValueError if they do not fit
        self._check_teacher()
        if not 0 <= self.collapse_below < 1:
            raise ValueError(f"collapse_below: given {self.collapse_below}, allowed: at least 0 and below 1")
        _ = self.pairing

    def _check_teacher(self) -> None:
        given = f"teacher_nfe: given {self.teacher_nfe}, allowed for coupling"
        if self.coupling == "reflow" and self.teacher_nfe <= self.nfe:
            raise ValueError(f"{given} 'reflow': more than nfe = {self.nfe}")
        if self.coupling == "inversion" and self.teacher_nfe % 4:
            raise ValueError(f"{given} 'inversion': multiples of 4")

    @cached_property
    def optimization(self) -> Optimization:
        """Return the settings of the optimiser."""
        given = {name: getattr(self, name) for name in ("steps", "batch_size", "lr", "ema_decay", "precision")}
        try:
            return Optimization(**given, weight_decay=0.0, warmup=min(50, self.steps), max_grad_norm=1.0)
        except ValidationError as error:
            raise ValueError(line(error, given, lambda _keys: ())) from None

    @cached_property
    def pairing(self) -> Coupling:
        """Return the coupling as a function."""
        return make_coupling(self.coupling, self.candidates) if isinstance(self.coupling, str) else self.coupling

    @property
    def has_teacher(self) -> bool:
        """Tell whether the coupling may ask for the given field's fine solve."""
        return not isinstance(self.coupling, str) or self.coupling in AHEAD

    @classmethod
    def names(cls) -> list[str]:
        """List the names of the arguments."""
        return [field.name for field in fields(cls)]

    @property
    def identity(self) -> str:
        """Return a text of all arguments that the weights in training depend on."""
        own = {name: getattr(self, name) for name in self.names() if name not in _WATCHING}
        if not isinstance(self.coupling, str):
            own["coupling"] = getattr(self.coupling, "__qualname__", "")
        return repr(own)


def check_choice(name: str, given: str, allowed: tuple[str, ...]) -> None:
    """Check that ``given`` is one of ``allowed``; ``name`` is the argument in messages.

    Raises:
        ValueError: it is not.
    """
    if given not in allowed:
        raise ValueError(f"{name}: given {given!r}, allowed: {', '.join(allowed)}")
