from types import SimpleNamespace

import numpy as np
import pytest

from genrec_rl.config import load_component
from genrec_rl.errors import ConfigError, DataError
from genrec_rl.rewards.gates import EmbeddingGate, GateReport, SidPrefixGate, ValidGate, fit_tau, gate_report
from genrec_rl.rewards.protocol import Gate
from genrec_rl.rewards.scoring import pass_gate
from genrec_rl.types import Action, Context, Example

# Unit vectors at these angles: the cosine of two items is the cosine of their angles' difference.
ANGLES = np.radians([0, 60, 90, 180])
CATALOG = SimpleNamespace(
    vectors=np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32),
    codes=np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=np.int32),
    semantic_codes=np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=np.int32),
)
ALL = np.array([[0, 1, 2, 3]])


def context(*history):
    items = np.array(history, dtype=np.int64)
    return Context("u", 100, items, np.arange(len(items)), np.zeros(len(items), dtype=np.int64))


def example(history, positives, exposed=()):
    items = np.array([*positives, *exposed])
    actions = np.array([Action.CLICK] * len(positives) + [Action.EXPOSE] * len(exposed), dtype=np.int8)
    return Example("r", context(*history), items, actions)


def embedding(**init):
    return EmbeddingGate(CATALOG, **{"tau": 0.4} | init)


def test_embedding_similarity_is_the_cosine_to_the_nearest_history_item():
    np.testing.assert_allclose(embedding().similarity([context(0)], ALL, None), [[1, 0.5, 0, -1]], atol=1e-6)
    np.testing.assert_allclose(embedding().similarity([context(0, 3)], ALL, None), [[1, 0.5, 0, 1]], atol=1e-6)


def test_prefix_similarity_is_the_longest_shared_prefix_over_the_levels():
    gate = SidPrefixGate(CATALOG)
    np.testing.assert_allclose(gate.similarity([context(0)], ALL, None), [[1, 2 / 3, 1 / 3, 0]])
    np.testing.assert_allclose(gate.similarity([context(0, 3)], ALL, None), [[1, 2 / 3, 1 / 3, 1]])


def test_a_code_shared_after_a_difference_does_not_count():
    # items 2 = (0, 1, 0) and 3 = (1, 0, 0) share only their last code
    assert SidPrefixGate(CATALOG).similarity([context(2)], np.array([[3]]), None) == 0


def test_prefix_gate_leaves_out_levels_beyond_n_levels():
    gate = SidPrefixGate(CATALOG, n_levels=2)
    np.testing.assert_allclose(gate.similarity([context(0)], ALL, None), [[1, 1, 0.5, 0]])


def test_prefix_gate_asks_by_default_for_one_shared_code():
    passed = pass_gate(SidPrefixGate(CATALOG), [context(0)], ALL, None)
    np.testing.assert_array_equal(passed, [[True, True, True, False]])


def test_each_request_is_compared_with_its_own_history():
    both = np.concatenate([ALL, ALL])
    np.testing.assert_allclose(
        embedding().similarity([context(0), context(3)], both, None),
        [[1, 0.5, 0, -1], [-1, -0.5, 0, 1]],
        atol=1e-6,
    )


def test_page_positives_count_only_where_the_reference_says_so():
    positives = [np.array([3])]
    assert embedding().similarity([context(0)], ALL, positives)[0, 3] == pytest.approx(1)
    assert embedding(reference="history").similarity([context(0)], ALL, positives)[0, 3] == pytest.approx(-1)


def test_page_reference_falls_back_to_history_where_positives_are_not_given():
    assert embedding(reference="history+page").similarity([context(0)], ALL, None)[0, 3] == pytest.approx(-1)


def test_everything_passes_for_a_user_without_history():
    for gate in (embedding(tau=0.99), SidPrefixGate(CATALOG, tau=0.9)):
        assert pass_gate(gate, [context()], ALL, None).all()


def test_page_positives_alone_are_a_reference():
    np.testing.assert_allclose(
        embedding().similarity([context()], ALL, [np.array([0])]), [[1, 0.5, 0, -1]], atol=1e-6
    )


def test_valid_gate_lets_every_item_pass():
    assert pass_gate(ValidGate(), [context(0)], ALL, None).all()


@pytest.mark.parametrize("gate", [embedding(), SidPrefixGate(CATALOG), ValidGate()])
def test_every_gate_implements_the_protocol(gate):
    assert isinstance(gate, Gate)


# History (0): positives 0, 1, 2, 3 have similarities 1, .5, 0, -1.
PAGES = [example([0], [0, 1]), example([0], [2, 3], exposed=[1]), example([], [0]), example([0], [], [3])]


@pytest.mark.parametrize(("percentile", "share"), [(0, 1.0), (25, 0.75), (34, 0.75), (67, 0.5), (99, 0.25)])
def test_fitted_tau_passes_at_least_the_asked_share_of_positives(percentile, share):
    gate = EmbeddingGate(CATALOG, tau={"percentile": percentile}, examples=PAGES)
    report = gate_report(gate, PAGES, CATALOG, seed=0)
    assert report.positives_pass == share


def test_tau_is_fitted_against_history_alone_although_the_reference_holds_the_page():
    history, page = (
        EmbeddingGate(CATALOG, tau={"percentile": 50.0}, examples=PAGES, reference=reference)
        for reference in ("history", "history+page")
    )
    assert history.tau == page.tau < 1


def test_discrete_similarities_do_not_stop_the_share_that_ties_with_tau():
    # positives 1 and 2 share two codes and one code with the history
    pages = [example([0], [1, 2, 2, 2])]
    gate = SidPrefixGate(CATALOG, tau={"percentile": 50.0}, examples=pages)
    assert gate_report(gate, pages, CATALOG, seed=0).positives_pass == 1


def test_report_counts_positives_with_a_history_only():
    gate = SidPrefixGate(CATALOG)
    report = gate_report(gate, PAGES, CATALOG, seed=0)
    assert report == GateReport(0.0, 0.75, report.random_pass, 0.0, 4)


def test_random_items_pass_at_the_rate_of_their_similarity():
    pages = [example([0], [0] * 500)]
    assert gate_report(SidPrefixGate(CATALOG), pages, CATALOG, seed=0).random_pass == pytest.approx(0.75, abs=0.06)


def test_no_invalid_sid_passes_even_where_everything_does():
    report = gate_report(ValidGate(), PAGES, CATALOG, seed=0)
    assert (report.positives_pass, report.random_pass, report.invalid_pass) == (1, 1, 0)


@pytest.mark.parametrize(
    ("init", "named"),
    [
        ({"tau": 1.0}, "tau 1.0"),
        ({"tau": -1.5}, "tau -1.5"),
        ({"tau": {"percentage": 5}}, "percentile"),
        ({"tau": {"percentile": 5.0}}, "validation pages"),
        ({"tau": {"percentile": 100.0}, "examples": PAGES}, "percentile 100"),
        ({"reference": "page"}, "reference 'page'"),
    ],
)
def test_impossible_settings_are_refused_by_name(init, named):
    with pytest.raises(ConfigError, match=named):
        embedding(**init)


def test_levels_beyond_the_catalogue_are_refused():
    with pytest.raises(ConfigError, match="n_levels 4 is outside 1 to 3"):
        SidPrefixGate(CATALOG, n_levels=4)


def test_tau_cannot_be_fitted_on_pages_without_history_or_positives():
    with pytest.raises(DataError, match="none of 2 pages"):
        fit_tau(embedding(), PAGES[2:], percentile=5)


def test_a_yaml_block_builds_a_gate():
    gate = load_component(
        {"class_path": "genrec_rl.rewards.gates.EmbeddingGate", "init_args": {"tau": {"percentile": 5}}},
        expected=Gate,
        key="gate",
        provided={"catalog": CATALOG, "examples": PAGES},
    )
    assert gate.tau == fit_tau(gate, PAGES, percentile=5)


def test_a_hash_level_is_no_prefix():
    codes = np.array([[0, 0, 5], [0, 0, 7], [0, 1, 5], [1, 0, 5]], dtype=np.int32)
    catalog = SimpleNamespace(codes=codes, semantic_codes=codes[:, :2])
    np.testing.assert_allclose(SidPrefixGate(catalog).similarity([context(0)], ALL, None), [[1, 1, 0.5, 0]])
    with pytest.raises(ConfigError, match="n_levels 3 is outside 1 to 2, the catalogue's semantic levels"):
        SidPrefixGate(catalog, n_levels=3)
