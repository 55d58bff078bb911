"""Toy problems: the demonstrated curve and its velocity are consistent."""

import torch

from pipeline.tasks.toys import CLOCK, LAP, PLACES, clock, curve, curve_velocity, place_of


def test_curve_velocity_is_its_derivative_and_the_curve_is_closed() -> None:
    t = torch.linspace(0, LAP, 17, dtype=torch.float64)
    slope = torch.func.jvp(curve, (t,), (torch.ones_like(t),))[1]
    torch.testing.assert_close(curve_velocity(t), slope)
    torch.testing.assert_close(curve(t + LAP), curve(t))
    assert clock(t).shape == (17, CLOCK)


def test_states_left_of_zero_belong_to_the_first_place() -> None:
    starts = torch.tensor([[-0.1, 5.0], [0.1, -5.0]])
    assert torch.equal(place_of(starts), PLACES)
