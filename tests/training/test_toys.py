"""Toy models of Figure 1: reproducible files and the properties they are trained for."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.settings.schema import ToySettings, load
from pipeline.stability.contraction import certify_flow
from pipeline.tasks.toys import place_of
from pipeline.training.toys import Driven, load_toy, load_toys, save_toy, toy_names, train_toy
from pipeline.utils.errors import UserError
from tests.project import ROOT
from tests.tiny_project import TOYS


def tiny() -> ToySettings:
    whole = load(ROOT / "params.yaml").starter.toys.model_dump()
    changed = {key: whole[key] | value if isinstance(value, dict) else value for key, value in TOYS.items()}
    return ToySettings.model_validate(whole | changed)


def trained(name: str, folder: Path) -> torch.nn.Module:
    return train_toy(name, tiny(), folder / f"{name}.pt", lambda _metrics, _step: None)


@pytest.mark.parametrize("name", ["mle1-nearest", "follow-contracting"])
def test_equal_seeds_give_equal_files_and_files_round_trip(name: str, tmp_path: Path) -> None:
    for folder in (tmp_path / "first", tmp_path / "second"):
        save_toy(folder / "model", trained(name, folder))
    assert (tmp_path / "first" / "model").read_bytes() == (tmp_path / "second" / "model").read_bytes()
    loaded = load_toy(tmp_path / "first" / "model", name, tiny())
    save_toy(tmp_path / "again", loaded)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "first" / "model").read_bytes()


def test_models_have_distinct_names_and_initial_weights(tmp_path: Path) -> None:
    names = toy_names(tiny())
    assert names[:4] == ["fm", "mle0-independent", "mle1-nearest", "follow-contracting"]
    assert names[4:] == ["follow-free0", "follow-free1", "settle"]
    first, second = (trained(f"follow-free{k}", tmp_path).state_dict() for k in range(2))
    assert not torch.equal(first["source.A0"], second["source.A0"])


def test_contracting_toy_is_certified_by_its_own_metric(tmp_path: Path) -> None:
    net = trained("follow-contracting", tmp_path)
    assert isinstance(net, Driven)
    driven = net.exported()
    assert driven.rate == tiny().rate
    assert certify_flow(driven.system, driven.rate, driven.metric, driven.multipliers).status == "certified"


def test_an_exported_system_moves_as_the_net_does(tmp_path: Path) -> None:
    net = trained("follow-free0", tmp_path)
    assert isinstance(net, Driven)
    driven = net.exported()
    x, u = torch.randn(5, 2).double(), torch.randn(5, 4).double()
    theirs = driven.system.field(x.numpy(), driven.push(u.numpy()))
    torch.testing.assert_close(net.double().begin(u)(0.0, x), torch.from_numpy(theirs), atol=1e-6, rtol=1e-6)


def test_settle_toy_reaches_its_targets(tmp_path: Path) -> None:
    net = trained("settle", tmp_path)
    assert isinstance(net, Driven)
    starts = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    x, field = starts, net.begin(starts.new_zeros(64, 0))
    with torch.no_grad():
        for _ in range(100):
            x = x + 0.04 * field(0.0, x)
    assert (x - place_of(starts)).square().mean() < 0.3 * starts.new_tensor([1.25]).mean()


def test_missing_and_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found; it is made by `dvc repro train_toys`"):
        load_toys(tmp_path, tiny())
    save_file({"A0": torch.zeros(2, 2)}, tmp_path / "fm.safetensors")
    with pytest.raises(UserError, match=r"not the model that params\.yaml describes under toys"):
        load_toy(tmp_path / "fm.safetensors", "fm", tiny())
