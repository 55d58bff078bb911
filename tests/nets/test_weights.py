"""Weights saved from a wrapped net load into a plain one and vice versa."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from pipeline.nets.weights import load_weights, unwrapped


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), nn.SiLU(), nn.Sequential(nn.Linear(3, 2)))


def compiled(plain: nn.Module) -> nn.Module:
    return torch.compile(plain, backend="eager")  # type: ignore[return-value]


def compiled_in_part(plain: nn.Module) -> nn.Module:
    plain[2] = compiled(plain[2])  # type: ignore[index, operator]
    return plain


def parallel(plain: nn.Module) -> nn.Module:
    return nn.DataParallel(plain)


WRAPPERS = {
    "plain": lambda plain: plain,
    "compiled": compiled,
    "compiled in part": compiled_in_part,
    "parallel": parallel,
    "compiled, parallel": lambda plain: parallel(compiled(plain)),
    "parallel, compiled": lambda plain: compiled(parallel(plain)),
}


@pytest.mark.parametrize("into", WRAPPERS)
@pytest.mark.parametrize("saved", WRAPPERS)
def test_weights_load_from_any_wrapper_into_any(saved: str, into: str) -> None:
    trained = net(1)
    expected = deepcopy(trained.state_dict())
    given = WRAPPERS[into](net(2))
    load_weights(given, WRAPPERS[saved](trained).state_dict())
    for name, tensor in unwrapped(given.state_dict()).items():
        assert torch.equal(tensor, expected[name])


def test_submodule_named_like_a_wrapper_keeps_its_name() -> None:
    own = nn.ModuleDict({"module": nn.Linear(2, 2), "out": nn.Linear(2, 2)})
    other = deepcopy(own)
    nn.init.zeros_(own["module"].weight)  # type: ignore[arg-type]
    load_weights(other, own.state_dict())
    assert torch.equal(other["module"].weight, own["module"].weight)


def test_ambiguous_names_stay_and_unfitting_weights_are_refused() -> None:
    weights = {"module.a": torch.zeros(1), "a": torch.ones(1)}
    assert unwrapped(weights) == weights
    with pytest.raises(RuntimeError, match="Missing key"):
        load_weights(net(0), {"_orig_mod.0.weight": torch.zeros(3, 2)})
