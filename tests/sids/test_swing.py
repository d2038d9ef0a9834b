import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from genrec_rl.errors import DataError
from genrec_rl.sids.collaborative import CollaborativeSettings, fine_tune
from genrec_rl.sids.swing import (
    SwingPairs,
    capped,
    largest_of_rows,
    multi_positive_info_nce,
    swing_pairs,
    swing_weights,
)
from tests.sids.test_collaborative import C, E, O, page_table, unit

# u takes 0 1, v takes 0 1 2, w takes 0 1 2: shared by u v 2, u w 2, v w 3
TAKEN = csr_matrix(np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]], float))
PAGES = page_table(
    [
        ("u", [(0, O), (3, E)]),
        ("u", [(1, C), (0, C)]),
        ("v", [(0, O), (1, C), (2, C)]),
        ("w", [(0, O), (1, C)]),
        ("w", [(2, C)]),
        ("w", [(3, C)]),
    ]
)


def pairs(train=(0, 1, 2, 3, 4), **changes) -> SwingPairs:
    given = {"n_items": 4, "alpha": 1.0, "max_users": 500, "n_partners": 20, "seed": 0}
    return swing_pairs(PAGES, np.array(train), **given | changes)


def test_swing_of_three_users_by_hand():
    a_u, a_v = 2**-0.5, 3**-0.5
    w_01 = 2 * a_u * a_v / (1 + 2) + a_v * a_v / (1 + 3)
    w_02 = a_v * a_v / (1 + 3)
    expected = [[0, w_01, w_02, 0], [w_01, 0, w_02, 0], [w_02, w_02, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(swing_weights(TAKEN, alpha=1.0).toarray(), expected)


def test_training_positives_count_once_a_user_and_exposures_not():
    np.testing.assert_allclose(pairs().weights.toarray(), swing_weights(TAKEN, alpha=1.0).toarray())
    assert pairs(train=range(6)).weights.toarray()[3].sum() == 0  # only w took item 3


def test_one_shared_item_says_nothing_of_others():
    with pytest.raises(DataError, match="Swing has no pairs"):
        pairs(train=[0, 4])


def test_cap_keeps_that_many_users_of_each_item():
    kept = capped(TAKEN, max_users=2, rng=np.random.default_rng(0))
    assert kept.toarray().sum(0).tolist() == [2, 2, 2, 0]
    assert (capped(TAKEN, max_users=3, rng=np.random.default_rng(0)) != TAKEN).nnz == 0


def test_best_partners_of_each_row_stay_and_a_choice_counts_for_both():
    weights = csr_matrix(np.array([[0, 3, 2, 1], [3, 0, 0, 0], [2, 0, 0, 0], [1, 0, 0, 0]], float))
    assert largest_of_rows(weights, 1).toarray()[0].tolist() == [0, 3, 0, 0]
    kept = pairs(n_partners=1).weights.toarray()
    assert (kept == kept.T).all()
    assert (kept[2] > 0).tolist() == [True, False, False, False]


def test_pairs_are_drawn_by_weight():
    drawn = pairs().sample(4000, np.random.default_rng(0))
    weights = pairs().weights.toarray()
    of_0 = drawn[drawn[:, 0] == 0][:, 1]
    assert (of_0 == 1).mean() == pytest.approx(weights[0, 1] / weights[0].sum(), abs=0.03)
    assert set(map(tuple, drawn.tolist())) == {(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)}


def test_loss_of_three_items_by_hand():
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    is_partner = torch.tensor([[False, True, False], [True, False, True], [False, False, False]])
    loss = multi_positive_info_nce(vectors, is_partner_BB=is_partner, temperature=0.5)
    of_0 = -math.log(math.exp(1.2) / (math.exp(1.2) + math.exp(0.0)))
    of_1 = 0.0  # all others are its partners
    assert loss.item() == pytest.approx((of_0 + of_1) / 2, abs=1e-6)  # item 2 has no partner


def test_fine_tuning_on_swing_draws_partners_together():
    settings = CollaborativeSettings(epochs=40, batch_size=8, hidden=16, learning_rate=1e-2, pairs="swing")
    together = csr_matrix(np.kron(np.eye(2), np.array([[0.0, 1.0], [1.0, 0.0]])))  # 0 with 1, 2 with 3
    projection, losses = fine_tune(unit(4), SwingPairs(together), settings=settings, seed=0)
    cosines = projection.apply_to(unit(4)) @ projection.apply_to(unit(4)).T
    assert cosines[0, 1] > cosines[0, 2:].max() + 0.5
    assert losses[-1] < losses[0]
