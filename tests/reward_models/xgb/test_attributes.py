import numpy as np
import pytest

from reward_models.xgb.attributes import attribute_vectors


def test_items_of_the_same_attributes_are_alike_and_of_none_are_zero():
    vectors = attribute_vectors([["opi", "nail"], ["nail", "opi"], ["hair"], None, []])
    cosines = vectors @ vectors.T
    assert cosines[0] == pytest.approx([1, 1, 0, 0, 0])
    assert vectors[3:].tolist() == [[0, 0, 0]] * 2


def test_a_rare_attribute_weighs_more_than_a_common_one():
    vectors = attribute_vectors([[0, 7], [0, 8], [1, 7], [0], [0], [0]])
    assert vectors[0] @ vectors[2] > vectors[0] @ vectors[1]


def test_many_attributes_are_compressed_to_the_size_and_keep_their_cosines():
    rng = np.random.default_rng(0)
    groups = [rng.choice(30, 3, replace=False) + 30 * (item % 2) for item in range(40)]
    vectors = attribute_vectors([row.tolist() for row in groups], size=24)
    assert vectors.shape == (40, 24)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(40), abs=1e-6)
    across = vectors[::2] @ vectors[1::2].T
    assert np.abs(across).max() < 0.01
