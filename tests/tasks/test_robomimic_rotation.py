"""Conversions of rotations against scipy, also at angles near 0 and π."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from pipeline.tasks.robomimic.rotation import (
    axis_angle_from_matrix,
    matrix_from_axis_angle,
    matrix_from_quaternion,
    matrix_from_six,
    six_from_matrix,
)

ANGLES = [0.0, 1e-12, 1e-8, 1e-4, 1.0, np.pi - 1e-4, np.pi - 1e-8, np.pi - 1e-12, np.pi]
UNIT = arrays(np.float64, 3, elements=st.floats(-1, 1)).filter(lambda v: np.linalg.norm(v) > 1e-3)
NUMBERS = arrays(np.float64, (2, 3), elements=st.floats(-10, 10, allow_subnormal=False))


@given(UNIT, st.one_of(st.sampled_from(ANGLES), st.floats(0, np.pi)))
def test_axis_angle_matches_scipy_and_round_trips(axis: np.ndarray, angle: float) -> None:
    vector = axis / np.linalg.norm(axis) * angle
    matrix = matrix_from_axis_angle(vector)
    np.testing.assert_allclose(matrix, Rotation.from_rotvec(vector).as_matrix(), rtol=0, atol=1e-14)
    back = axis_angle_from_matrix(matrix)
    if angle > np.pi - 1e-7 and back @ vector < 0:  # a half turn has two vectors
        back = back * (1 - 2 * np.pi / np.linalg.norm(back))
    np.testing.assert_allclose(back, vector, rtol=0, atol=1e-13)


@given(UNIT, st.floats(0, np.pi))
def test_six_numbers_round_trip_to_the_matrix(axis: np.ndarray, angle: float) -> None:
    matrix = matrix_from_axis_angle(axis / np.linalg.norm(axis) * angle)
    np.testing.assert_array_equal(six_from_matrix(matrix), [*matrix[0], *matrix[1]])
    np.testing.assert_allclose(matrix_from_six(six_from_matrix(matrix)), matrix, rtol=0, atol=1e-14)


@given(NUMBERS)
def test_any_six_numbers_give_a_rotation(numbers: np.ndarray) -> None:
    matrix = matrix_from_six(numbers.reshape(6))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), rtol=0, atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)
    if np.linalg.norm(numbers[0]) > 1e-6:
        np.testing.assert_allclose(matrix[0], numbers[0] / np.linalg.norm(numbers[0]), atol=1e-12)


@pytest.mark.parametrize("numbers", [[0] * 6, [0, 0, 0, 0, 1, 0], [0, 0, 2, 0, 0, 4], [1, 0, 0, 0, 0, 0]])
def test_degenerate_six_numbers_give_a_rotation(numbers: list[float]) -> None:
    matrix = matrix_from_six(np.array(numbers, dtype=float))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), rtol=0, atol=1e-14)
    assert np.linalg.det(matrix) == pytest.approx(1)


def test_conversions_are_vectorised_over_leading_axes() -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 5, 3)) * 1.5
    matrices = matrix_from_axis_angle(vectors)
    rotations = Rotation.from_rotvec(vectors.reshape(-1, 3))
    np.testing.assert_allclose(matrices.reshape(-1, 3, 3), rotations.as_matrix(), atol=1e-14)
    np.testing.assert_allclose(axis_angle_from_matrix(matrices).reshape(-1, 3), rotations.as_rotvec(), atol=1e-12)
    assert six_from_matrix(matrices).shape == (4, 5, 6)
    np.testing.assert_allclose(matrix_from_six(six_from_matrix(matrices)), matrices, atol=1e-14)
    np.testing.assert_allclose(matrix_from_quaternion(rotations.as_quat()), rotations.as_matrix(), atol=1e-14)
