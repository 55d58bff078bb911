"""Names that settings had before: refused in params.yaml with the present one, and still those in model files."""

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
"""The present name of a setting, by the one before."""

_BEFORE = {new: old for old, new in RENAMED.items()}


def as_stored(settings: Any) -> Any:
    """``settings``, as plain values, with the names that model files have for them: equal models give equal bytes."""
    return _with_names(settings, _BEFORE)


def from_stored(settings: Any) -> Any:
    """The settings in a model file, as plain values, with their present names."""
    return _with_names(settings, RENAMED)


def _with_names(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(name, name): _with_names(inner, names) for name, inner in value.items()}
    return value
