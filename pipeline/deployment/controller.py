"""Run a model file in any control loop, one observation at a time, with the same actions as in the evaluation."""

from collections import deque
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pipeline.evaluation.diffusion_policy import DiffusionPolicy, Sampler
from pipeline.evaluation.policy import FlowPolicy
from pipeline.evaluation.rollouts import POLICY_BATCH_SIZE, Policy
from pipeline.settings.paths import SAMPLERS
from pipeline.tasks.camera import CHANNELS, Camera
from pipeline.training.checkpoint import CheckpointMetadata
from pipeline.training.residual_checkpoint import load_model
from pipeline.utils.errors import UserError

MOST_COMPONENTS = 4096
"""Longest raw observation that an encoding is tried on."""


class Controller:
    """Receding-horizon controller of one robot: keeps the observation history and the chunk that is being executed.

    After ``reset(seed, repeat)`` it acts as in the rollout's episode of that seed and repeat. The actions are equal to
    the bit if ``batch_size`` is the rollout's ``policy_batch_size``, otherwise up to rounding, because a net's output
    for a row changes in its last bits with the size of the batch. (In nets of a few units it also changes with the
    row's place in the batch.)

    Args:
        policy: plans the actions. observation_dim: S, components of a raw observation, without a camera's pixels.
        camera: describes the camera whose pictures the policy takes, if it does.
        batch_size: rows of every call of the policy; only the first is used; 1 is the fastest.

    Attributes:
        n_obs_steps, n_action_steps: observations in the history of a plan, and its executed actions.
    """

    def __init__(
        self, policy: Policy, observation_dim: int, *, camera: Camera | None = None, batch_size: int = POLICY_BATCH_SIZE
    ) -> None:
        self.n_obs_steps = policy.n_obs_steps
        self.n_action_steps = policy.n_action_steps
        self._policy = policy
        self._observation_dim = observation_dim
        self._camera = camera
        self._batch_size = batch_size
        self._generator: np.random.Generator | None = None
        self._history: deque[NDArray[np.float64]] = deque(maxlen=policy.n_obs_steps)
        self._chunk: deque[NDArray[np.float32]] = deque()

    def reset(self, seed: int, repeat: int = 0) -> None:
        """Begin an episode: forget the last one, and draw all noise from a generator keyed by (seed, repeat).

        Raises:
            UserError: ``seed`` or ``repeat`` is negative.
        """
        if min(seed, repeat) < 0:
            raise UserError(f"reset: given seed {seed} and repeat {repeat}, allowed: 0 or more")
        self._generator = np.random.default_rng([seed, repeat])
        self._history.clear()
        self._chunk.clear()

    def act(self, observation: ArrayLike, image: ArrayLike | None = None) -> NDArray[np.float32]:
        """Compute the action (A,), in environment units, for a control step.

        Call it once a step, with the observation before the step. A plan uses the last ``n_obs_steps`` observations; at
        the start of an episode the first observation fills the history.

        Args:
            observation: raw, (S,), as returned by the task's environment.
            image: the camera's picture, uint8 (H, W, 3), RGB, scaled as in training; only for a policy that learned
                from a camera's pictures.

        Raises:
            UserError: no episode has begun, the observation is not S finite numbers, or the image is missing, not such
                a picture, or not used by the policy.
            FloatingPointError: the policy returned actions that are not finite.
        """
        if self._generator is None:
            raise UserError("act: called before reset(seed), which begins an episode")
        seen = self._with_picture(self._checked(observation), image)
        self._history.extend([seen] if self._history else [seen] * self.n_obs_steps)
        if not self._chunk:
            self._chunk.extend(self._plan(self._generator))
        return self._chunk.popleft()

    def _checked(self, observation: ArrayLike) -> NDArray[np.float64]:
        try:
            seen = np.array(observation, dtype=np.float64)
        except (TypeError, ValueError):
            raise UserError(
                f"observation: given {type(observation).__name__}, allowed: {self._observation_dim} numbers"
            ) from None
        if seen.shape != (self._observation_dim,):
            raise UserError(f"observation: given shape {seen.shape}, allowed: ({self._observation_dim},)")
        if not np.isfinite(seen).all():
            raise UserError(f"observation: given {seen.tolist()}, allowed: finite numbers")
        return seen

    def _with_picture(self, numbers: NDArray[np.float64], image: ArrayLike | None) -> NDArray[np.float64]:
        if self._camera is None:
            if image is not None:
                raise UserError("image: given, allowed: none; the policy looks at no camera's pictures")
            return numbers
        picture = np.asarray([] if image is None else image)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != CHANNELS or not picture.size:
            given = "none" if image is None else f"{picture.dtype} {picture.shape}"
            raise UserError(f"image: given {given}, allowed: the camera's picture, uint8 (H, W, {CHANNELS})")
        return self._camera.observed(numbers, picture)

    def _plan(self, generator: np.random.Generator) -> NDArray[np.float32]:
        """Plan the next chunk, (n_action_steps, A)."""
        noise = generator.standard_normal(self._policy.noise_shape, dtype=np.float32)
        history = np.stack(self._history).astype(np.float32)
        actions = self._policy.act(self._alone(history), self._alone(noise))[0, : self.n_action_steps]
        if not np.isfinite(actions).all():
            raise FloatingPointError("the policy returned actions that are not finite")
        return actions

    def _alone(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """Make a batch with ``row`` first and zeros below it."""
        batch = np.zeros((self._batch_size, *row.shape), np.float32)
        batch[0] = row
        return batch


def load_policy(
    file: str | Path, nfe: int | None = None, *, sampler: Sampler | None = None, batch_size: int = POLICY_BATCH_SIZE
) -> Controller:
    """Load a controller from a model file, on the GPU if there is one; call its ``reset(seed)`` first.

    If a policy's images can be rendered from the simulator's state, it takes the state, as in the evaluation. A policy
    that learned from a camera's pictures takes those as well: ``act(numbers, image)``.

    Args:
        file: a checkpoint of this project: of a flow, with or without a residual, or of a diffusion.
        nfe: function evaluations of a plan; by default the number that the model was fine-tuned for.
        sampler: only for a diffusion model; by default ``ddpm``.
        batch_size: see ``Controller``.

    Raises:
        UserError: the file does not exist or is not a checkpoint; ``nfe`` is not given and the model has none, or the
            model cannot take so many evaluations; ``sampler`` is given for a flow.
    """
    policy, nfe, metadata = load_for_use(Path(file), nfe, sampler)
    if batch_size < 1:
        raise UserError(f"batch_size: given {batch_size}, allowed: 1 or more")
    policy = policy.to("cuda" if torch.cuda.is_available() else "cpu")
    camera = metadata.load_task().observations[metadata.data.observation].camera
    observation_dim = camera.numbers if camera else raw_observation_dim(policy)
    return Controller(policy.acting(nfe), observation_dim, camera=camera, batch_size=batch_size)


def load_for_use(file: Path, nfe: int | None, sampler: Sampler | None) -> tuple[FlowPolicy, int, CheckpointMetadata]:
    """Load a model file; return its policy with the sampler, the number of evaluations, and the file's metadata.

    Arguments and errors: as ``load_policy``.
    """
    policy, metadata = load_model(file)
    if sampler and (metadata.method not in SAMPLERS or sampler not in SAMPLERS):
        allowed = ", ".join(SAMPLERS) if metadata.method in SAMPLERS else "none, since it is a flow"
        raise UserError(f"sampler: given {sampler!r}, allowed for {file}: {allowed}")
    if metadata.method in SAMPLERS:
        policy = DiffusionPolicy(policy, sampler or "ddpm").eval()
    if nfe is None and not metadata.nfe:
        raise UserError(f"nfe: not given, and {file} has none of its own: it was not fine-tuned for one")
    nfe = metadata.nfe if nfe is None else nfe
    policy.acting(nfe)  # raises if the policy cannot take so many evaluations
    return policy, nfe, metadata


def raw_observation_dim(policy: FlowPolicy) -> int:
    """Find S, the components of a raw observation: the least number that the policy's encoding maps to its D.

    Raises:
        ValueError: there is no such number up to ``MOST_COMPONENTS``.
    """
    encoded = len(policy.observation_normalizer.offset)
    for size in range(1, MOST_COMPONENTS + 1):
        try:
            if policy.observe(np.zeros((1, size), np.float32)).shape == (1, encoded):
                return size
        except (ValueError, IndexError):  # too short, or not the length that the encoding needs
            continue
    raise ValueError(f"the encoding makes {encoded} components of no raw observation of up to {MOST_COMPONENTS}")
