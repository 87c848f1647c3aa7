from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from model.corpus.landmarks import PARTS, STILL_WIDTH, first_difference, from_holistic, motion, with_motion


def holistic(frames: int = 5, coordinates: int = 3, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(1, 300, (frames, 543, coordinates)).astype(np.float32)


def block(features: NDArray[np.float32], number: int) -> NDArray[np.float32]:
    """Landmarks, velocity, acceleration or copy (T, 1629)."""
    return np.split(features, 4, axis=1)[number]


def test_velocity_and_acceleration_are_zero_at_first_and_plain_differences_then() -> None:
    positions = [1.0, 4.0, 9.0, 16.0]
    features = with_motion(np.repeat(np.array(positions, dtype=np.float32)[:, None], 1629, axis=1))
    assert features.shape == (4, 6516)
    for column in (0, 1628):
        x, velocity, acceleration, copy = (block(features, i)[:, column].tolist() for i in range(4))
        assert x == copy == positions
        assert velocity == [0, 3, 5, 7]
        assert acceleration == [0, 3, 2, 2], "at frame 1 it is the velocity itself: x[1] - x[0] - 0"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_motion_is_rounded_in_the_type_of_the_landmarks(dtype: type[np.floating]) -> None:
    still = np.zeros((2, 1629), dtype=dtype)
    still[:, 7] = 1, 1 / 3
    features = with_motion(still)
    assert features.dtype == dtype
    assert features[1, 1629 + 7] == dtype(1 / 3) - dtype(1)


@pytest.mark.parametrize("frames", [0, 1])
def test_without_a_frame_before_there_is_no_motion(frames: int) -> None:
    features = with_motion(np.ones((frames, 1629), dtype=np.float32))
    assert features.shape == (frames, 6516)
    assert not features[:, 1629:4887].any()


@pytest.mark.parametrize("shape", [(4, 6516), (1629,), (2, 3, 1629)])
def test_motion_of_anything_but_landmarks_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="1629"):
        with_motion(np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize("dimension", [1629, 3257, 3258, 4886, 4887, 6515])
@pytest.mark.parametrize("frame", [0, 3])
def test_the_first_value_that_does_not_follow_is_named(frame: int, dimension: int) -> None:
    features, _ = from_holistic(holistic())
    assert first_difference(features) is None
    expected = float(features[frame, dimension])
    features[frame, dimension] = np.nextafter(features[frame, dimension], np.float32(1e9))
    assert first_difference(features) == (frame, dimension, float(features[frame, dimension]), expected)


def test_features_derived_in_double_and_rounded_afterwards_do_not_follow() -> None:
    """As some extractors do it: the velocity differs in the last bit, so it cannot be derived from what is stored."""
    still = np.random.default_rng(0).normal(size=(30, 1629))
    assert first_difference(with_motion(still)) is None
    found = first_difference(with_motion(still).astype(np.float32))
    assert found is not None
    assert abs(found.found - found.expected) < 1e-6


def test_a_zero_of_the_other_sign_does_not_follow() -> None:
    features = with_motion(np.ones((4, 1629), dtype=np.float32))
    features[2, 1700] = -0.0
    found = first_difference(features)
    assert found is not None
    assert found[:2] == (2, 1700)


@pytest.mark.parametrize("shape", [(4, 1629), (4, 225), (6516,)])
def test_only_features_with_motion_can_be_compared(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="6516"):
        first_difference(np.zeros(shape, dtype=np.float32))


def test_parts_go_from_the_order_of_mediapipe_to_that_of_the_features() -> None:
    landmarks = np.repeat(np.arange(1.0, 544)[None, :, None], 2, axis=0) + np.array([0, 0.25, 0.5])
    features, masks = from_holistic(landmarks)
    assert (features.shape, features.dtype, masks.shape, masks.dtype) == ((2, 6516), np.float32, (2, 543), np.bool_)
    x = block(features, 0)[0]
    assert x[:4].tolist() == [1, 1.25, 1.5, 2], "pose first, x y z of each landmark"
    # In MediaPipe's order landmarks 1..33 are the pose, 34..501 the face, 502..522 and 523..543 the hands.
    assert x[[98, 99, 161, 162, 224, 225, 1628]].tolist() == [33.5, 502, 522.5, 523, 543.5, 34, 501.5]
    assert masks.all()


def test_more_coordinates_than_three_are_left_out() -> None:
    four = holistic(coordinates=4)
    np.testing.assert_array_equal(from_holistic(four)[0], from_holistic(four[:, :, :3])[0])


def test_a_hand_that_was_not_found_is_not_detected_however_it_is_written() -> None:
    left = PARTS["left hand"]
    zeros, nan, unsure = holistic(), holistic(), holistic()
    zeros[1, left] = 0
    nan[1, left] = np.nan
    confidence = np.ones((5, 543), dtype=np.float32)
    confidence[1, left] = 0
    for landmarks, sure in ((zeros, None), (nan, None), (unsure, confidence), (zeros, confidence)):
        features, masks = from_holistic(landmarks, sure)
        assert np.isfinite(features).all()
        assert not masks[1, left].any()
        assert masks.sum() == 5 * 543 - 21
    assert not from_holistic(nan)[0][1, 99:162].any()


def test_a_landmark_with_one_broken_coordinate_is_zero_as_a_whole() -> None:
    landmarks = holistic().astype(np.float64)
    landmarks[2, 0, 1] = np.inf
    landmarks[2, 1, 0] = 1e300  # infinite in float32
    features, masks = from_holistic(landmarks)
    assert not features[2, :6].any()
    assert not masks[2, :2].any()
    assert masks[2, 2:].all()


def test_a_landmark_at_zero_in_one_coordinate_is_detected() -> None:
    landmarks = holistic()
    landmarks[:, PARTS["left hand"].start, 2] = 0  # the wrist's depth is relative to itself
    assert from_holistic(landmarks)[1].all()


def test_low_visibility_of_a_pose_landmark_is_still_a_detection() -> None:
    confidence = np.full((5, 543), 1e-4)
    confidence[0, 0] = np.nan
    masks = from_holistic(holistic(), confidence)[1]
    assert not masks[0, 0]
    assert masks.sum() == masks.size - 1


@pytest.mark.parametrize(
    ("shape", "word"),
    [((5, 543, 2), "543, 3 or more"), ((5, 1629), "543, 3 or more"), ((0, 543, 3), "543, 3 or more"),
     ((5, 468, 3), "pose 33, face 468"), ((5, 553, 3), "irises")],
)  # fmt: skip
def test_another_shape_is_refused(shape: tuple[int, ...], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        from_holistic(np.ones(shape, dtype=np.float32))


def test_what_is_not_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="must be numbers"):
        from_holistic(np.full((2, 543, 3), "x"))
    with pytest.raises(ValueError, match=r"confidence is .*\(5, 33\)"):
        from_holistic(holistic(), np.ones((5, 33)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("frames", [1, 2, 3, 7, 20])
def test_motion_some_frames_at_a_time_is_motion_at_once_to_the_bit(dtype: type, frames: int) -> None:
    for length in (1, 2, 3, 7, 8):
        still = np.random.default_rng(length).normal(size=(length, STILL_WIDTH)).astype(dtype)
        parts = [np.concatenate([x, v, a, x], axis=1) for _, x, v, a in motion(still, frames)]
        assert np.concatenate(parts).tobytes() == with_motion(still).tobytes()
