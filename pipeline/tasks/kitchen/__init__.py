"""Franka Kitchen: four of seven subtasks in one episode."""

from pathlib import Path

from pipeline.tasks.api import Dataset, Demonstrations, EnvSpec, Observation, PaperFacts, Publication, Task
from pipeline.tasks.datasets import own_datasets
from pipeline.tasks.kitchen.env import ACTION_DIM, ENOUGH, MAX_STEPS, STATE_DIM, Kitchen, observe


def _read(path: Path) -> Demonstrations:
    from pipeline.tasks.kitchen.files import read_kitchen

    return read_kitchen(path)


MIXED = Dataset(
    "Franka Kitchen, human demonstrations of four of seven subtasks each, 566 episodes",
    "Apache-2.0 (that of relay-policy-learning)",
    "Gupta et al., Relay Policy Learning, CoRL 2019; Chi et al., Diffusion Policy: Visuomotor Policy Learning via "
    "Action Diffusion, RSS 2023",
    _read,
    566,
    publications=(
        Publication("kitchen"),
        Publication(
            "kitchen.zip",
            root="kitchen",
            url="https://diffusion-policy.cs.columbia.edu/data/training/kitchen.zip",
            members=("observations_seq.npy", "actions_seq.npy", "existence_mask.npy"),
        ),
    ),
)

TASK = Task(
    title="Franka Kitchen",
    datasets=own_datasets("kitchen", "Franka Kitchen", ".zip", 100, _read) | {"kitchen_mixed": MIXED},
    observations={"state": Observation(STATE_DIM, observe)},
    action_dim=ACTION_DIM,
    envs={"": EnvSpec(Kitchen, MAX_STEPS)},
    subtasks=ENOUGH,
    least_variation=0.015,  # untouched knobs move by less; every element that is moved moves by more
    action_bounds=((-1.0,) * ACTION_DIM, (1.0,) * ACTION_DIM),
    robots=1,
    objects=7,
    paper=PaperFacts(
        dataset="kitchen_mixed",
        columns={"": 2},
        observations=("state",),
        d1=(8, 16, "1x60", "ConditionalUnet1D", 66, None, None, 1e-4, 5e-6),
        d2=(1, 7, 9, 566, 280, False),
    ),
    expert="pipeline.experts.kitchen:EXPERT",
)
