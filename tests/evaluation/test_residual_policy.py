"""Residual policies: NFE, temperature and checkpoints."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from pipeline.evaluation.residual_policy import ResidualPolicy, solve_residual
from pipeline.settings.schema import MlpSettings
from pipeline.training.checkpoint import CheckpointMetadata, build_policy, load_policy, round_weights, save_policy
from pipeline.training.residual_checkpoint import load_model, make_residual_policy, read_recipe, save_residual_policy
from pipeline.utils.errors import UserError
from tests.nets.test_residual_nets import recipe
from tests.training.helpers import data_settings

DATA = data_settings(n_obs_steps=1)
NET = MlpSettings(kind="mlp", width=8, depth=1, expansion=1, time_features=4)
RECORD = CheckpointMetadata("starter", "pusht", "resft_fm", 6, 10, 0, DATA, NET, {})


def make_policy(*, trained: bool = True) -> ResidualPolicy:
    base = build_policy(RECORD)
    round_weights(base.net)
    policy = make_residual_policy(base, recipe(sees_noise=True), seed=0)
    if trained:
        torch.manual_seed(1)
        torch.nn.init.normal_(policy.residual.input_net.out.weight, std=0.3)  # type: ignore[union-attr, arg-type]
    policy.residual = policy.residual.fixed()
    return policy.eval()


def drawn(batch: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 6, generator=generator), torch.randn(batch, 4, 2, generator=generator)


def test_untrained_residual_keeps_the_samples_of_the_base() -> None:
    condition, noise = drawn()
    policy = make_policy(trained=False)
    expected = build_policy(RECORD)
    round_weights(expected.net)
    assert torch.equal(policy.sample(condition, noise, 6), expected.sample(condition, noise, 2))


@torch.no_grad()
def test_nfe_counts_the_evaluations_of_both_fields() -> None:
    condition, noise = drawn()
    policy = make_policy()
    calls = {"base": 0, "residual": 0}
    policy.net.register_forward_hook(lambda *_: calls.update(base=calls["base"] + 1))
    begin = policy.residual.begin

    def counting_begin(*arguments: torch.Tensor):  # type: ignore[no-untyped-def]
        field = begin(*arguments)

        def counting(t: float, x: torch.Tensor) -> torch.Tensor:
            calls["residual"] += 1
            return field(t, x)

        return counting

    policy.residual.begin = counting_begin  # type: ignore[method-assign]
    policy.sample(condition, noise, 9)
    assert calls == {"base": 5, "residual": 4}


def test_temperature_scales_the_noise_of_the_base_solve_only() -> None:
    condition, noise = drawn()
    policy = make_policy()
    anchor = policy.anchor(condition, noise / 2, 6)
    policy.temperature = 0.5
    assert torch.equal(policy.anchor(condition, noise, 6), anchor)
    expected = solve_residual(policy.residual, anchor, condition, noise, policy.grid)
    assert torch.equal(policy.sample(condition, noise, 6), expected)


def test_nfe_must_exceed_the_residuals_evaluations() -> None:
    policy = make_policy()
    with pytest.raises(UserError, match=r"^--nfe: given 4, allowed: more than the 4 evaluations of the residual$"):
        policy.acting(4)
    assert policy.acting(5).act(np.zeros((2, 1, 5), np.float32), np.zeros((2, 4, 2), np.float32)).shape == (2, 4, 2)


def test_residual_checkpoints_round_trip_and_plain_ones_load(tmp_path: Path) -> None:
    condition, noise = drawn()
    policy = make_policy()
    save_residual_policy(tmp_path / "a.safetensors", policy, RECORD, recipe(sees_noise=True))
    save_residual_policy(tmp_path / "b.safetensors", policy, RECORD, recipe(sees_noise=True))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "b.safetensors"}
    loaded, record = load_model(tmp_path / "a.safetensors")
    assert record == RECORD and isinstance(loaded, ResidualPolicy)
    assert read_recipe(tmp_path / "a.safetensors") == recipe(sees_noise=True)
    assert torch.equal(loaded.sample(condition, noise, 6), policy.sample(condition, noise, 6))

    plain = build_policy(RECORD)
    save_policy(tmp_path / "plain.safetensors", plain, RECORD)
    assert not isinstance(load_model(tmp_path / "plain.safetensors")[0], ResidualPolicy)
    cooler = recipe(sees_noise=True).model_copy(update={"reflow_temperature": 0.5})
    save_residual_policy(tmp_path / "cooler.safetensors", policy, replace(RECORD, temperature=0.7), cooler)
    assert read_recipe(tmp_path / "cooler.safetensors") == cooler
    assert load_model(tmp_path / "cooler.safetensors")[0].temperature == 0.7
    with pytest.raises(UserError, match=r"weights do not fit the architecture"):
        load_policy(tmp_path / "a.safetensors")  # not silently without its residual


def test_damaged_header_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_residual_policy(path, make_policy(), RECORD, recipe(sees_noise=True))
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
    header["flowtune_residual"] = header["flowtune_residual"].replace('"end": 2.0', '"end": 0.5')
    path.write_bytes(save(load_file(path), metadata=header))
    with pytest.raises(UserError, match=r"a\.safetensors: damaged header: .*end") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
