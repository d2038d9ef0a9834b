import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_rl.errors import ConfigError, DataError
from genrec_rl.sids.trie import NO_NODE, TOP_K_STRIDE, SidTrie, largest, largest_of_each

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


def test_an_end_is_certain_where_one_sid_goes_on():
    trie = SidTrie(np.array([[0, 0, 0], [0, 1, 0], [0, 1, 2], [1, 2, 2], [2, 0, 1], [2, 0, 3]]), [3, 3, 4])
    assert trie.is_certain(0, ROOT).tolist() == [[False]]
    assert trie.is_certain(1, torch.tensor([[0, 1, 2, NO_NODE]])).tolist() == [[False, True, False, True]]
    assert trie.is_certain(2, torch.tensor([[0, 1], [2, 3]])).tolist() == [[True, False], [True, False]]


@given(SIDS)
def test_an_end_is_certain_exactly_where_the_walk_has_one_path(rows):
    trie = SidTrie(np.array(rows), [5, 5, 5])
    for level in range(4):
        below = [sid[:level] for sid in sids_below(trie)]
        prefixes = sorted(set(below))
        is_certain = trie.is_certain(level, torch.arange(len(prefixes))[None])
        assert is_certain[0].tolist() == [below.count(prefix) == 1 for prefix in prefixes]


def test_place_without_a_child_holds_a_dead_node():
    trie = SidTrie(np.array([[0, 1], [0, 2], [2, 0]]), [3, 3])
    _, children, _, is_child = trie.children(1, torch.tensor([[0, 1]]))
    assert (children[~is_child] == NO_NODE).all()
    assert (~is_child).sum() == 1


def test_one_crowded_node_among_many_small_ones_leaves_few_places_empty():
    crowded = [[0, code] for code in range(100)]
    trie = SidTrie(np.array([*crowded, *([k, k] for k in range(1, 50))]), [50, 100])
    children, of_last = real_children(trie, 1, [list(range(50)), [NO_NODE] * 49 + [49]])
    assert children == [(code, code, 0) for code in range(100)] + [(k, 99 + k, k) for k in range(1, 50)]
    assert of_last == [(49, 148, 49)]
    assert trie.children(1, torch.arange(50)[None])[0].shape[1] < 2 * 149 + 50


@settings(deadline=None, max_examples=30)
@given(SIDS)
def test_walking_the_trie_gives_exactly_the_distinct_sids_in_order(rows):
    assert sids_below(SidTrie(np.array(rows), [5, 5, 5])) == sorted(set(rows))


@pytest.mark.parametrize("small_room", [0, 1 << 10])
@settings(deadline=None, max_examples=30)
@given(data=st.data(), rows=SIDS)
def test_children_of_any_nodes_are_those_of_each_alone(small_room, data, rows):
    trie = SidTrie(np.array(rows), [5, 5, 5])
    level = data.draw(st.integers(0, 2))
    node = st.integers(NO_NODE, trie.n_prefixes(level) - 1)
    width = data.draw(st.integers(1, 6))
    nodes = data.draw(st.lists(st.lists(node, min_size=width, max_size=width), min_size=1, max_size=3))
    alone = [[real_children(trie, level, [[n]])[0] for n in row] for row in nodes]
    expected = [[(code, child, w) for w in range(width) for code, child, _ in row[w]] for row in alone]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genrec_rl.sids.trie.SMALL_ROOM", small_room)
        assert real_children(trie, level, nodes) == expected


def test_best_children_of_hand_worked_beams():
    trie = SidTrie(np.array([[0, 1], [0, 2], [2, 0]]), [3, 3])
    log_probs = torch.tensor([[[9.0, -1.0, -5.0, -2.0], [9.0, -3.0, -4.0, -6.0]]])
    beams = trie.best_children(
        1, torch.tensor([[0, 1]]), torch.tensor([[-10.0, -20.0]]), log_probs, width=3, code_start=1
    )
    # Code c is at place 1 + c. Node 0: code 1 at -10 - 5, code 2 at -10 - 2. Node 1: code 0 at -20 - 3.
    assert beams.scores.tolist() == [[-12, -15, -23]]
    assert beams.parents.tolist() == [[0, 0, 1]]
    assert beams.codes.tolist() == [[2, 1, 0]]
    assert beams.nodes.tolist() == [[1, 0, 2]]


@pytest.mark.parametrize("nodes", [[1, NO_NODE], [NO_NODE, 1], [NO_NODE, NO_NODE]])
def test_best_children_behind_the_last_one_are_dead(nodes):
    trie = SidTrie(np.array([[0, 1], [0, 2], [2, 0]]), [3, 3])
    beams = trie.best_children(1, torch.tensor([nodes]), torch.zeros(1, 2), torch.zeros(1, 2, 3), width=2)
    is_alive = max(nodes) >= 0
    assert beams.nodes.tolist() == [[2 if is_alive else NO_NODE, NO_NODE]]
    assert beams.scores.tolist() == [[0.0 if is_alive else -torch.inf, -torch.inf]]


@pytest.mark.parametrize("small_room", [0, 1 << 10])
@settings(deadline=None, max_examples=30)
@given(data=st.data(), rows=SIDS)
def test_best_children_are_the_best_of_all_children(small_room, data, rows):
    trie = SidTrie(np.array(rows), [5, 5, 5])
    level, n_nodes = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    nodes = torch.randint(NO_NODE, trie.n_prefixes(level), (2, n_nodes), generator=generator)
    scores, log_probs = torch.randn(2, n_nodes, generator=generator), torch.randn(2, n_nodes, 7, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genrec_rl.sids.trie.SMALL_ROOM", small_room)
        beams = trie.best_children(level, nodes, scores, log_probs, width=4, code_start=2)
    for row in range(2):
        every = [
            (float(scores[row, parent] + log_probs[row, parent, 2 + code]), parent, code, child)
            for code, child, parent in real_children(trie, level, nodes[row : row + 1].tolist())[0]
        ]
        is_alive = beams.nodes[row] != NO_NODE
        parts = (beams.scores, beams.parents, beams.codes, beams.nodes)
        found = list(zip(*(part[row][is_alive].tolist() for part in parts), strict=True))
        assert found == sorted(every, reverse=True)[:4]
        assert (beams.scores[row][~is_alive] == -torch.inf).all()


def test_nan_comes_first():
    trie = SidTrie(np.array([[0], [1]]), [2])
    beams = trie.best_children(0, ROOT, torch.zeros(1, 1), torch.tensor([[[0.0, torch.nan]]]), width=1)
    assert beams.scores.isnan().all()


@settings(deadline=None, max_examples=50)
@given(length=st.integers(1, 5 * TOP_K_STRIDE), k=st.integers(1, 4), seed=st.integers(0, 99))
def test_largest_is_topk(length, k, seed):
    values = torch.rand(2, length, generator=torch.Generator().manual_seed(seed))
    expected, at = values.topk(min(k, length), dim=1)
    found, places = largest(values, k)
    assert found.equal(expected)
    assert places.equal(at)


@settings(deadline=None, max_examples=30)
@given(SIDS)
def test_order_of_the_items_changes_nothing(rows):
    assert sids_below(SidTrie(np.array(rows[::-1]), [5, 5, 5])) == sids_below(SidTrie(np.array(rows), [5, 5, 5]))


def test_prefixes_are_counted_by_length():
    trie = SidTrie(np.array([[0, 1, 1], [0, 2, 0], [2, 0, 0], [2, 0, 1]]), [3, 3, 2])
    assert [trie.n_prefixes(length) for length in range(4)] == [1, 2, 3, 4]


def test_equal_sids_count_once():
    assert SidTrie(np.array([[1, 1], [1, 1], [0, 1]]), [2, 2]).n_sids == 2


def test_bytes_of_hand_worked_arrays():
    # Level 0: begins [0, 0, 2], 2 codes and 2 of padding. Level 1: begins [0, 0, 2, 3], 3 codes and 2 of padding.
    trie = SidTrie(np.array([[0, 1], [0, 2], [2, 0]]), [3, 3])
    assert trie.n_bytes == (3 * 4 + 4 * 2) + (4 * 4 + 5 * 2)


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


def test_each_group_gives_its_own_largest_at_most():
    values = torch.tensor([[[5.0, 9.0, 8.0], [7.0, 1.0, 2.0]]])
    best, at = largest_of_each(values, 3, per_group=2)
    assert best.tolist() == [[9, 8, 7]]
    assert at.tolist() == [[1, 2, 3]]
    best, at = largest_of_each(values, 3, per_group=1)
    assert best.tolist() == [[9, 7]]
    assert at.tolist() == [[1, 3]]


@pytest.mark.parametrize("small_room", [0, 1 << 10])
@settings(deadline=None, max_examples=30)
@given(data=st.data(), rows=SIDS)
def test_nodes_give_their_own_best_children_at_most(small_room, data, rows):
    trie = SidTrie(np.array(rows), [5, 5, 5])
    level, n_nodes = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 6))
    per_node, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    nodes = torch.randint(NO_NODE, trie.n_prefixes(level), (2, n_nodes), generator=generator)
    scores, log_probs = torch.randn(2, n_nodes, generator=generator), torch.randn(2, n_nodes, 5, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genrec_rl.sids.trie.SMALL_ROOM", small_room)
        beams = trie.best_children(level, nodes, scores, log_probs, width=width, per_node=per_node)
        uncut = trie.best_children(level, nodes, scores, log_probs, width=width)
    for row in range(2):
        own = [
            sorted((float(scores[row, w] + log_probs[row, w, code]), w, code, child) for code, child, _ in children)
            for w, node in enumerate(nodes[row].tolist())
            for children in real_children(trie, level, [[node]])
        ]
        every = [child for children in own for child in children[-per_node:]]
        is_alive = beams.nodes[row] != NO_NODE
        parts = (beams.scores, beams.parents, beams.codes, beams.nodes)
        found = list(zip(*(part[row][is_alive].tolist() for part in parts), strict=True))
        assert found == sorted(every, reverse=True)[:width]
    if per_node >= width:
        assert beams.scores.equal(uncut.scores)


def test_a_crowded_node_gives_its_own_best_alone():
    """Its children would lie in several pieces; the cut is of a node, not of a piece."""
    crowded = [[0, code] for code in range(2000)]
    trie = SidTrie(np.array([*crowded, *([k, k] for k in range(1, 50))]), [50, 2000])
    log_probs = torch.arange(2000.0).expand(1, 50, -1)
    beams = trie.best_children(1, torch.arange(50)[None], torch.zeros(1, 50), log_probs, width=10, per_node=3)
    assert beams.codes.tolist() == [[1999, 1998, 1997, 49, 48, 47, 46, 45, 44, 43]]
    assert beams.parents.tolist() == [[0, 0, 0, 49, 48, 47, 46, 45, 44, 43]]
