"""Load the policy of a table row: a model file at its number of evaluations, or an untrained baseline."""

from pathlib import Path

import torch

from pipeline.evaluation.baselines import NearestDemoPolicy, RandomPolicy, SmallImages, shrunk
from pipeline.evaluation.diffusion_policy import DiffusionPolicy
from pipeline.evaluation.image_policy import ImageConditioning, beside_features
from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.rollouts import Policy
from pipeline.nets.vision import joined
from pipeline.settings.paths import BASELINES, SAMPLERS, TaskFiles
from pipeline.settings.schema import TaskSettings
from pipeline.training.checkpoint import CheckpointMetadata, LoadedPolicy, new_metadata, require_architecture
from pipeline.training.data import PreparedData
from pipeline.training.frames import Frames, RecordedImageConditioning
from pipeline.training.residual_checkpoint import load_model

IMAGES = 256
"""Number of windows whose images are read at once."""


def load_acting(
    model: Path, scale: str, task: str, method: str, nfe: int, settings: TaskSettings
) -> tuple[Policy, CheckpointMetadata]:
    """Load the policy of a row of Table 2, with its metadata."""
    if method in BASELINES:
        return baseline(method, scale, task, settings), new_metadata(scale, task, method, settings)
    policy, metadata = load_to_evaluate(model, scale, task, settings)
    return acting(policy, method, nfe), metadata


def load_to_evaluate(model: Path, scale: str, task: str, settings: TaskSettings) -> LoadedPolicy:
    """Load a model file of the task; in an offline task, an image policy reads the recorded frames.

    Raises:
        UserError: as ``load_model`` and ``require_architecture``; or the store of frames is missing.
    """
    policy, metadata = load_model(model)
    require_architecture(model, metadata, settings.data, settings.net)
    if isinstance(policy.observe, ImageConditioning) and settings.load_task().offline:
        policy.observe = RecordedImageConditioning(policy.observe, Frames.open(TaskFiles(scale, task).frames))
    return policy, metadata


def baseline(method: str, scale: str, task: str, settings: TaskSettings) -> Policy:
    """Build the baseline policy ``method``, which needs no training, from the task's training windows."""
    files, data = TaskFiles(scale, task), PreparedData.load(TaskFiles(scale, task).prepared)
    seen, done = settings.data.n_obs_steps, settings.data.n_action_steps
    if method == "random":
        return RandomPolicy(data.action, data.action_normalizer, n_obs_steps=seen, n_action_steps=done)
    about = settings.load_task()
    observation = about.observations[settings.data.observation]
    observe, normalizer, condition = observation.encode, data.observation_normalizer, data.condition
    if observation.render:
        frames = Frames.open(files.frames)
        images = torch.cat([torch.from_numpy(shrunk(frames.read(w).numpy())) for w in frames.windows.split(IMAGES)])
        normalizer = beside_features(normalizer, images.shape[-1])
        condition = joined(images, condition.unflatten(1, (seen, -1)))
        observe = SmallImages(frames.recorded if about.offline else observation.render, observe)
    return NearestDemoPolicy(
        observe,
        normalizer,
        data.action_normalizer,
        condition,
        data.action,
        n_obs_steps=seen,
        n_action_steps=done,
    )


def acting(policy: FlowPolicy, method: str, nfe: int) -> Policy:
    """Return ``policy`` at ``nfe`` evaluations, on the GPU if there is one; ``method`` may be a diffusion sampler."""
    if method in SAMPLERS:
        policy = DiffusionPolicy(policy, "ddpm" if method == "ddpm" else "ddim")
    return policy.to("cuda" if torch.cuda.is_available() else "cpu").acting(nfe)
