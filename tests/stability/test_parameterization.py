"""Trainable stable systems contract for all parameters; penalties vanish exactly where a proof holds."""

import numpy as np
import pytest
import torch

from pipeline.stability.certificate import issue
from pipeline.stability.contraction import certify_flow, certify_step
from pipeline.stability.inequalities import flow_blocks
from pipeline.stability.parameterization import (
    ContractingFlow,
    ContractingStep,
    Parameterization,
    UnconstrainedSystem,
    contraction_penalty,
    diagonal_dominance_penalty,
    step_penalty,
)

DRAWS = 100


def drawn(module: Parameterization, scale: float) -> Parameterization:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def penalty(module: Parameterization, rate: float = 0.5, margin: float = 0.0) -> torch.Tensor:
    P, gamma = module.certificate_matrices()
    return contraction_penalty(*module.matrices(), module.upper, P, gamma, rate, margin)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 3.0])
def test_every_draw_contracts_as_promised(kind: torch.dtype, scale: float) -> None:
    for draw in range(DRAWS):
        torch.manual_seed(draw)
        n, widths, functions = 1 + draw % 7, [1 + draw % 5, 3], ["tanh", "relu"]
        flow = drawn(ContractingFlow(n, widths, functions, 0.1 + draw % 5).to(kind), scale)
        P, gamma = flow.witness()
        certificate = issue("contraction", flow.system(), {"rate": flow.rate}, {"P": P, "gamma": gamma})
        assert certificate.status == "certified", draw
        step, ratio = [0.01, 0.1, 1.0][draw % 3], [0.3, 0.9, 0.99, 1.0][draw % 4]
        euler = drawn(ContractingStep(n, widths, functions, step, ratio).to(kind), scale)
        P, gamma = euler.witness()
        claim = {"ratio": ratio, "step": step}
        assert issue("contraction_step", euler.system(), claim, {"P": P, "gamma": gamma}).status == "certified", draw


def test_without_margin_rounding_prevents_the_proof() -> None:
    # B = 0 leaves no slack but the margin
    flow = ContractingFlow(4, [3], ["tanh"], 1.0, margin=1e-18).double()
    with torch.no_grad():
        flow.B.zero_()
    witness = dict(zip(("P", "gamma"), flow.witness(), strict=True))
    assert issue("contraction", flow.system(), {"rate": 1.0}, witness).status == "unknown"


@pytest.mark.parametrize(
    "make", [lambda: ContractingFlow(5, [4], ["tanh"], 0.7), lambda: ContractingStep(5, [4], ["tanh"], 0.1, 0.95)]
)
def test_initial_systems_are_well_conditioned_and_all_parameters_have_gradients(make: type) -> None:
    torch.manual_seed(0)
    module = make()
    A0, A, W = module.matrices()
    assert A0.dtype == torch.float32 and torch.linalg.matrix_norm(A0, 2) < 4 and torch.linalg.matrix_norm(A[0], 2) < 2
    assert np.linalg.cond(module.witness()[0]) < 2
    sum((torch.randn_like(matrix) * matrix).sum() for matrix in (A0, A[0], W[0])).backward()
    still = {name for name, value in module.named_parameters() if value.grad is None or not value.grad.abs().max() > 0}
    assert still == set()


def test_gradients_of_the_constructions_are_correct() -> None:
    for module in (ContractingFlow(2, [2], ["tanh"], 0.7), ContractingStep(2, [2], ["tanh"], 0.1, 0.95)):
        drawn(module.double(), 0.3)
        names, values = zip(*module.named_parameters(), strict=True)

        def outputs(*given: torch.Tensor, module: Parameterization = module, names: tuple = names) -> tuple:
            class Shell(torch.nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.inner = module

                def forward(self) -> tuple:
                    A0, A, _ = self.inner.matrices()
                    return (A0, *A)

            return torch.func.functional_call(Shell(), {f"inner.{n}": v for n, v in zip(names, given, strict=True)}, ())

        assert torch.autograd.gradcheck(outputs, tuple(v.detach().requires_grad_() for v in values))


def test_diagonal_dominance_bounds_the_infinity_norm_and_no_more() -> None:
    A0 = torch.tensor([[-3.0, 1.0], [0.5, -2.0]], requires_grad=True)
    assert diagonal_dominance_penalty(A0, 1.5) == 0
    found = diagonal_dominance_penalty(A0, 1.75)
    assert found.item() == pytest.approx(0.25)
    found.backward()
    assert A0.grad is not None and A0.grad.tolist() == [[0, 0], [1, 1]]
    # the penalty is zero though the system grows, since it ignores A_1
    system = UnconstrainedSystem(2, [2], ["tanh"])
    with torch.no_grad():
        system.A0.copy_(-2 * torch.eye(2))
        system.A[0].copy_(5 * torch.eye(2))
        system.W[0].copy_(torch.eye(2))
    assert diagonal_dominance_penalty(system.A0, 1.0) == 0 and penalty(system) > 0
    assert certify_flow(system.system(), 0.1).status == "refuted"


def test_the_penalty_is_zero_if_and_only_if_the_inequality_holds() -> None:
    seen = set()
    for draw in range(200):
        torch.manual_seed(draw)
        module = drawn(UnconstrainedSystem(3, [2, 2], ["tanh", "arctan"]).double(), 0.4 * draw / 200)
        P, gamma = module.witness()
        A, W = module.system().stacked
        blocks = flow_blocks(module.system().A0, A, W, np.zeros((4, 4)), np.eye(4), P, np.diag(gamma), 0.5)
        holds = bool(np.linalg.eigvalsh(np.block(blocks))[-1] < 0)
        assert (penalty(module) == 0) == holds
        assert not holds or certify_flow(module.system(), 0.5, P, gamma).status == "certified"
        seen.add(holds)
    assert seen == {True, False}


@pytest.mark.parametrize("of_step", [False, True])
def test_descending_the_penalty_ends_in_a_certificate(of_step: bool) -> None:
    torch.manual_seed(1)
    module = drawn(UnconstrainedSystem(3, [3], ["tanh"]).double(), 0.7)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)

    def value() -> torch.Tensor:
        P, gamma = module.certificate_matrices()
        if of_step:
            return step_penalty(*module.matrices(), module.upper, P, gamma, 0.1, 0.98)
        return contraction_penalty(*module.matrices(), module.upper, P, gamma, 0.5)

    assert value() > 0
    for _ in range(600):
        optimizer.zero_grad()
        loss = value()
        if loss == 0:
            break
        loss.backward()
        optimizer.step()
    assert loss == 0
    system, witness = module.system(), module.witness()
    found = certify_step(system, 0.98, 0.1, *witness) if of_step else certify_flow(system, 0.5, *witness)
    assert found.status == "certified"


def test_penalty_gradients_are_correct() -> None:
    torch.manual_seed(0)
    module = drawn(UnconstrainedSystem(2, [2], ["tanh"]).double(), 0.7)
    A0, A, W = module.matrices()
    P, gamma = module.certificate_matrices()
    given = tuple(value.detach().requires_grad_() for value in (A0, A[0], W[0], gamma[0]))
    P = P.detach()
    assert torch.autograd.gradcheck(lambda a0, a, w, g: contraction_penalty(a0, [a], [w], [1.0], P, [g], 0.5), given)
    assert torch.autograd.gradcheck(lambda a0, a, w, g: step_penalty(a0, [a], [w], [1.0], P, [g], 0.1, 0.9), given)
    assert torch.autograd.gradcheck(lambda a0, *_: diagonal_dominance_penalty(a0, 2.0), given)


def test_impossible_settings_are_refused() -> None:
    for make, message in (
        (lambda: ContractingFlow(0, [2], ["tanh"], 1.0), "n, widths, functions: given 0"),
        (lambda: ContractingFlow(2, [2], ["sine"], 1.0), "given 'sine'"),
        (lambda: ContractingFlow(2, [2], ["tanh"], -1.0), "rate, margin: given -1.0"),
        (lambda: ContractingStep(2, [2], ["tanh"], 0.1, 1.5), r"step, ratio, margin: given 0.1, 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
