"""Random streams by purpose: fixed, independent and resumable."""

import torch

from pipeline.utils.seeding import Generators, derive


def test_seeds_differ_by_purpose_and_never_change() -> None:
    assert derive(0, "pretrain", "noise") == 1841904939315586086
    seeds = [derive(seed, purpose, part) for seed in range(9) for purpose in ("a", "b") for part in (0, 1)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_using_one_stream_does_not_shift_another() -> None:
    alone, both = Generators(0, "finetune"), Generators(0, "finetune")
    torch.rand(5, generator=both["time"])
    assert torch.equal(torch.rand(3, generator=alone["noise"]), torch.rand(3, generator=both["noise"]))


def test_saved_states_continue_where_they_were() -> None:
    generators = Generators(1, "pretrain")
    torch.rand(5, generator=generators["noise"])
    states = generators.state_dict()
    following = torch.rand(3, generator=generators["noise"])
    unused = torch.rand(3, generator=generators["time"])

    resumed = Generators(1, "pretrain")
    torch.rand(9, generator=resumed["time"])
    resumed.load_state_dict(states)
    assert torch.equal(torch.rand(3, generator=resumed["noise"]), following)
    assert torch.equal(torch.rand(3, generator=resumed["time"]), unused)


def test_processes_draw_different_numbers_and_the_first_those_of_a_single_one() -> None:
    draws = []
    for process in range(3):
        generators = Generators(0, "pretrain")
        generators.split(process)
        draws.append(torch.rand(4, generator=generators["batches"]))
    assert torch.equal(draws[0], torch.rand(4, generator=Generators(0, "pretrain")["batches"]))
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[1], draws[2])
