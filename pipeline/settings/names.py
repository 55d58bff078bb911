"""Translate former names of settings: params.yaml refuses them, naming the present one; model files keep them."""

from typing import Any

RENAMED = {
    "observation_horizon": "n_obs_steps",
    "prediction_horizon": "horizon",
    "chunk": "n_action_steps",
    "clip": "max_grad_norm",
    "pairs_ahead": "precomputed_pairs",
    "side_seeds": "n_seeds_secondary",
    "batch": "num_envs",
    "block": "policy_batch_size",
}
"""Former name of a setting → present name."""

_BEFORE = {new: old for old, new in RENAMED.items()}


def as_stored(settings: Any) -> Any:
    """Give plain ``settings`` the former names, as in model files, so that equal models give equal bytes."""
    return _with_names(settings, _BEFORE)


def from_stored(settings: Any) -> Any:
    """Give the plain ``settings`` of a model file their present names."""
    return _with_names(settings, RENAMED)


def _with_names(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(name, name): _with_names(inner, names) for name, inner in value.items()}
    return value
