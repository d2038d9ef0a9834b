import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genrec_rl.errors import DataError
from genrec_rl.sids.trie import SidTrie


def sids_below(trie: SidTrie) -> list[tuple[int, ...]]:
    """Walk every real path from the root."""
    paths, nodes = [()], torch.zeros(1, dtype=torch.long)
    for level in range(len(trie.codebook_sizes)):
        codes, children, is_real = trie.children(level, nodes)
        paths = [paths[i] + (int(codes[i, f]),) for i in range(len(paths)) for f in torch.nonzero(is_real[i])[:, 0]]
        nodes = children[is_real]
    return paths


def test_children_of_hand_worked_prefixes():
    trie = SidTrie(np.array([[0, 1], [0, 2], [2, 0]]), [3, 3])
    codes, nodes, is_real = trie.children(0, torch.zeros(1, dtype=torch.long))
    assert codes.tolist() == [[0, 2]]
    assert is_real.tolist() == [[True, True]]
    codes, _, is_real = trie.children(1, nodes[0])
    assert codes[is_real].tolist() == [1, 2, 0]
    assert is_real.tolist() == [[True, True], [True, False]]


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=30))
def test_walking_the_trie_gives_exactly_the_distinct_sids_in_order(rows):
    assert sids_below(SidTrie(np.array(rows), [5, 5, 5])) == sorted(set(rows))


def test_equal_sids_count_once():
    assert SidTrie(np.array([[1, 1], [1, 1], [0, 1]]), [2, 2]).n_sids == 2


def test_code_outside_its_codebook_is_named():
    with pytest.raises(DataError, match=r"row 1 has code 7 at level 1, outside 0\.\.2"):
        SidTrie(np.array([[0, 0], [1, 7]]), [3, 3])


def test_empty_catalogue_is_refused():
    with pytest.raises(DataError, match="empty"):
        SidTrie(np.empty((0, 3), int), [3, 3, 3])
