from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.corpus.landmarks import first_difference, with_motion

DTYPES = st.sampled_from([np.float16, np.float32, np.float64])


@given(st.integers(0, 12), st.integers(0, 2**32 - 1), DTYPES, st.floats(1e-3, 1e3))
def test_what_is_derived_follows_from_its_landmarks(
    frames: int, seed: int, dtype: type[np.floating], scale: float
) -> None:
    still = (scale * np.random.default_rng(seed).normal(size=(frames, 1629))).astype(dtype)
    features = with_motion(still)
    assert first_difference(features) is None
    np.testing.assert_array_equal(with_motion(features[:, :1629]), features)


@given(st.integers(0, 9), st.integers(1629, 6515), st.integers(0, 2**32 - 1))
def test_any_changed_value_is_found_where_it_stands(frame: int, dimension: int, seed: int) -> None:
    features = with_motion(np.random.default_rng(seed).normal(size=(10, 1629)).astype(np.float32))
    features[frame, dimension] += 1
    found = first_difference(features)
    assert found is not None
    assert found[:2] == (frame, dimension)
