"""Precomputed solves equal those made online and are made once."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.flow.coupling import make_coupling
from pipeline.flow.pairing import NO_MODELS, Source
from pipeline.training.loop import Batches
from pipeline.training.teacher import Teacher, solved_ahead


class Shrink(nn.Module):
    """x' = −x/2 + c."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.5))

    def forward(self, _t: Tensor, x: Tensor, condition: Tensor) -> Tensor:
        return condition[:, :1, None] - self.rate * x


def windows(rows: int = 7) -> Batches:
    generator = torch.Generator().manual_seed(0)
    return Batches(torch.randn(rows, 1, generator=generator), torch.randn(rows, 3, 2, generator=generator))


def test_teacher_is_a_frozen_copy() -> None:
    net = Shrink()
    teacher = Teacher(net, 8)
    before = teacher.teach(windows().data, windows().condition)
    nn.init.zeros_(net.rate)
    assert torch.equal(teacher.teach(windows().data, windows().condition), before)
    assert not before.requires_grad


def test_inversion_solves_the_flow_accurately() -> None:
    """x1 = e^(−1/2) x0 where c = 0; 8 evaluations of RK4 are right to 1e-5, of Euler to 1e-1."""
    x0 = windows().data
    found = Teacher(Shrink(), 8).invert(x0 * torch.tensor(-0.5).exp(), torch.zeros(7, 1))
    assert torch.allclose(found, x0, atol=1e-4)


def test_reflow_pairs_are_fresh_noise_and_the_teachers_samples() -> None:
    teacher = Teacher(Shrink(), 4)
    made = solved_ahead("reflow", teacher, windows(), 3, torch.Generator().manual_seed(1))
    assert made.data.shape == (21, 2, 3, 2)
    assert torch.equal(made.condition, windows().condition.repeat_interleave(3, dim=0))
    x0, x1 = made.data.unbind(1)
    assert torch.equal(x0, Source(torch.Generator().manual_seed(1)).like(x0))
    assert torch.equal(x1, teacher.teach(x0, made.condition))
    pair = make_coupling("reflow", ahead=True)(made.data, made.condition, Source(torch.Generator()), NO_MODELS)
    assert torch.equal(pair.x0, x0) and torch.equal(pair.x1, x1)


def test_teacher_temperature_scales_the_noise_it_solves_from() -> None:
    """For a linear field x1 = a x0, a student at temperature τ learns τ a x0 from x0."""
    still = Batches(torch.zeros(7, 1), windows().data)
    warm, cool = (
        solved_ahead("reflow", Teacher(Shrink(), 4, at), still, 2, torch.Generator().manual_seed(1)).data.unbind(1)
        for at in (1.0, 0.25)
    )
    assert torch.equal(warm[0], cool[0])
    assert torch.equal(0.25 * warm[1], cool[1])


def test_precomputed_inversion_pairs_equal_online_pairs() -> None:
    teacher = Teacher(Shrink(), 4)
    batches = windows(400)
    made = solved_ahead("inversion", teacher, batches, 3, torch.Generator())
    assert len(made.data) == 400
    online = make_coupling("inversion", 1, typical_quantile=0.5)
    ahead = make_coupling("inversion", 1, typical_quantile=0.5, ahead=True)
    models = replace(NO_MODELS, invert=teacher.invert)
    expected = online(batches.data, batches.condition, Source(torch.Generator().manual_seed(2)), models)
    found = ahead(made.data, made.condition, Source(torch.Generator().manual_seed(2)), NO_MODELS)
    assert torch.equal(found.x0, expected.x0) and torch.equal(found.x1, expected.x1)
    assert 0 < found.metrics["fallback_share"] == expected.metrics["fallback_share"] < 1


def test_kept_solves_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, path = Teacher(Shrink(), 4), tmp_path / "pairs.pt"
    made = solved_ahead("reflow", teacher, windows(), 2, torch.Generator().manual_seed(1), keep=path)
    monkeypatch.setattr(Teacher, "teach", lambda *_: pytest.fail("made again"))
    again = solved_ahead("reflow", teacher, windows(), 2, torch.Generator().manual_seed(1), keep=path)
    assert torch.equal(again.data, made.data) and torch.equal(again.condition, made.condition)


def test_only_solves_independent_of_the_model_can_be_precomputed() -> None:
    with pytest.raises(ValueError, match=r"^coupling: given 'nearest', allowed where solves are made ahead: inversion"):
        make_coupling("nearest", ahead=True)
