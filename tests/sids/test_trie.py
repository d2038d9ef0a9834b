import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.sids.trie import NO_NODE, SidTrie

ROOT = torch.zeros(1, 1, dtype=torch.long)
SIDS = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=30)


def real_children(trie: SidTrie, level: int, nodes: list[list[int]]) -> list[list[tuple[int, int, int]]]:
    """Code, node and parent of each prompt's real children, in the order given."""
    *parts, is_child = trie.children(level, torch.tensor(nodes))
    return [
        list(zip(*(part[row][is_child[row]].tolist() for part in parts), strict=True)) for row in range(len(is_child))
    ]


def sids_below(trie: SidTrie) -> list[tuple[int, ...]]:
    """Walk every real path from the root."""
    paths, nodes = [()], ROOT
    for level in range(len(trie.codebook_sizes)):
        codes, children, parents, is_child = (part[0] for part in trie.children(level, nodes))
        paths = [(*paths[parents[i]], int(codes[i])) for i in torch.nonzero(is_child)[:, 0]]
        nodes = children[is_child][None]
    return paths


def test_children_of_hand_worked_prefixes():
    trie = SidTrie(np.array([[0, 1], [0, 2], [2, 0]]), [3, 3])
    assert real_children(trie, 0, [[0]]) == [[(0, 0, 0), (2, 1, 0)]]
    assert real_children(trie, 1, [[0, 1], [1, 0]]) == [
        [(1, 0, 0), (2, 1, 0), (0, 2, 1)],
        [(0, 2, 0), (1, 0, 1), (2, 1, 1)],
    ]


def test_dead_beam_has_no_children():
    trie = SidTrie(np.array([[0, 1], [0, 2], [2, 0]]), [3, 3])
    assert real_children(trie, 1, [[1, NO_NODE], [NO_NODE, NO_NODE]]) == [[(0, 2, 0)], []]
    assert real_children(trie, 1, [[NO_NODE]]) == [[]]


def test_place_without_a_child_holds_a_dead_node():
    trie = SidTrie(np.array([[0, 1], [0, 2], [2, 0]]), [3, 3])
    _, children, _, is_child = trie.children(1, torch.tensor([[0, 1]]))
    assert (children[~is_child] == NO_NODE).all()
    assert (~is_child).sum() == 1


def test_one_crowded_node_among_many_small_ones_leaves_few_places_empty():
    crowded = [[0, code] for code in range(100)]
    trie = SidTrie(np.array([*crowded, *([k, k] for k in range(1, 50))]), [50, 100])
    (children,) = real_children(trie, 1, [list(range(50))])
    assert children == [(code, code, 0) for code in range(100)] + [(k, 99 + k, k) for k in range(1, 50)]
    assert trie.children(1, torch.arange(50)[None])[0].shape[1] < 2 * 149 + 50


@given(SIDS)
def test_walking_the_trie_gives_exactly_the_distinct_sids_in_order(rows):
    assert sids_below(SidTrie(np.array(rows), [5, 5, 5])) == sorted(set(rows))


@settings(deadline=None)
@given(data=st.data(), rows=SIDS)
def test_children_of_any_nodes_are_those_of_each_alone(data, rows):
    trie = SidTrie(np.array(rows), [5, 5, 5])
    level = data.draw(st.integers(0, 2))
    node = st.integers(NO_NODE, trie.n_prefixes(level) - 1)
    width = data.draw(st.integers(1, 6))
    nodes = data.draw(st.lists(st.lists(node, min_size=width, max_size=width), min_size=1, max_size=3))
    alone = [[real_children(trie, level, [[n]])[0] for n in row] for row in nodes]
    expected = [[(code, child, w) for w in range(width) for code, child, _ in row[w]] for row in alone]
    assert real_children(trie, level, nodes) == expected


@given(SIDS)
def test_order_of_the_items_changes_nothing(rows):
    assert sids_below(SidTrie(np.array(rows[::-1]), [5, 5, 5])) == sids_below(SidTrie(np.array(rows), [5, 5, 5]))


def test_prefixes_are_counted_by_length():
    trie = SidTrie(np.array([[0, 1, 1], [0, 2, 0], [2, 0, 0], [2, 0, 1]]), [3, 3, 2])
    assert [trie.n_prefixes(length) for length in range(4)] == [1, 2, 3, 4]


def test_equal_sids_count_once():
    assert SidTrie(np.array([[1, 1], [1, 1], [0, 1]]), [2, 2]).n_sids == 2


def test_bytes_of_hand_worked_arrays():
    # Level 0: begins [0, 2], 2 codes and 2 of padding. Level 1: begins [0, 2, 3], 3 codes and 2 of padding.
    trie = SidTrie(np.array([[0, 1], [0, 2], [2, 0]]), [3, 3])
    assert trie.n_bytes == (2 * 4 + 4 * 2) + (3 * 4 + 5 * 2)


def test_large_catalogue_takes_at_most_24_bytes_an_item():
    codes = np.random.default_rng(0).integers(0, 8192, (10_000, 3))
    trie = SidTrie(codes, [8192] * 3)
    assert trie.n_bytes <= 24 * trie.n_sids


@pytest.mark.parametrize("size", [1 << 15, (1 << 15) + 1, 1 << 20])
def test_last_code_of_a_large_codebook_survives(size):
    assert sids_below(SidTrie(np.array([[size - 1, size - 2], [3, size - 1]]), [size, size])) == [
        (3, size - 1),
        (size - 1, size - 2),
    ]


def test_code_outside_its_codebook_is_named():
    with pytest.raises(DataError, match=r"row 1 has code 7 at level 1, outside 0\.\.2"):
        SidTrie(np.array([[0, 0], [1, 7]]), [3, 3])
    with pytest.raises(DataError, match=r"row 0 has code -1 at level 0, outside 0\.\.2"):
        SidTrie(np.array([[-1, 0], [1, 2]]), [3, 3])


def test_codebooks_too_large_to_number_are_refused():
    with pytest.raises(ConfigError, match=r"2\^63"):
        SidTrie(np.zeros((1, 3), int), [1 << 21] * 3)


def test_empty_catalogue_is_refused():
    with pytest.raises(DataError, match="empty"):
        SidTrie(np.empty((0, 3), int), [3, 3, 3])
