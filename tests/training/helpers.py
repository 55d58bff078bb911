"""Settings and policies that tests of training share."""

from torch import nn

from pipeline.evaluation.policy import FlowPolicy
from pipeline.settings.schema import DataSettings, Optimization
from pipeline.tasks.normalizer import Normalizer


def optimization(**changes: object) -> Optimization:
    """Return settings of a short training in single precision, without weight decay."""
    plain = {"batch_size": 128, "lr": 1e-3, "weight_decay": 0.0, "warmup": 20, "max_grad_norm": 1.0, "ema_decay": 0.9}
    return Optimization.model_validate({**plain, "precision": "fp32", **changes})


def data_settings(**changes: object) -> DataSettings:
    """Return settings of short action chunks on Push-T's poses."""
    plain = {"dataset": "pusht_starter", "observation": "pose", "n_obs_steps": 2, "horizon": 4, "n_action_steps": 2}
    return DataSettings.model_validate({**plain, "validation_fraction": 0.1, **changes})


def vector_policy(net: nn.Module, observation: int = 1, action: int = 1, horizon: int = 1) -> FlowPolicy:
    """Return a policy that observes states as they are, without normalisation."""
    return FlowPolicy(
        net.cpu(), lambda states: states, Normalizer(observation), Normalizer(action),
        n_obs_steps=1, horizon=horizon, n_action_steps=1,
    )  # fmt: skip
