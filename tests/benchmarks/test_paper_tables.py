import json

import numpy as np
import pytest

from benchmarks import paper_tables
from benchmarks.paper_tables import Settings, as_shown, choose_systems, completed, in_order, protocol_cells
from benchmarks.rl.arms import ARMS
from benchmarks.tables.systems import TABLE_1, TABLES
from genrec_rl.errors import ConfigError
from reward_models.scripted import Popularity
from tests.fixtures import make_policy, write_market


def cells(protocol, **settings):
    given = completed(Settings(**settings))
    return protocol_cells(given, protocol, choose_systems(given))


@pytest.mark.parametrize(("table", "protocols"), [(1, ["loo", "pages", "ties"]), (2, ["pages"])])
def test_each_table_has_its_protocols(table, protocols):
    assert completed(Settings(table=table)).protocols == protocols


def test_movielens_has_no_sids_but_ours():
    assert completed(Settings(data="movielens", sids="letter")).sids == "ours"


def test_every_system_is_asked_once_a_seed_but_counters_and_shuffled_ties():
    systems = ["popularity", "genrec"]
    assert set(cells("loo", systems=systems, seeds=[1, 2]).answers) == {
        ("popularity", 0),
        ("genrec", 1),
        ("genrec", 2),
    }
    assert set(cells("ties", systems=systems, seeds=[1, 2]).answers) == {("popularity", 0), ("genrec", 0)}


def test_work_goes_seed_by_seed_after_all_data():
    order = in_order([cells(name, systems=["tiger"], seeds=[0, 1]) for name in ("loo", "pages")])
    assert [cell.name for cell in order] == [
        "loo: data", "loo: catalogue", "pages: data", "pages: catalogue",
        "loo: tiger, seed 0", "pages: tiger, seed 0", "loo: tiger, seed 1", "pages: tiger, seed 1",
    ]  # fmt: skip


@pytest.mark.parametrize("data", ["beauty", "movielens"])
@pytest.mark.parametrize("protocol", ["loo", "pages", "ties"])
def test_no_two_cells_do_the_same_work(data, protocol):
    """Names and seeds apart, no row repeats another."""
    parts = cells(protocol, data=data, seeds=[0])
    facts = [{k: v for k, v in cell.facts.items() if k != "system"} for cell in parts.answers.values()]
    policies = [fact for fact in facts if "arguments" in fact]
    assert all(a != b for i, a in enumerate(policies) for b in policies[:i])
    assert len({cell.folder for cell in parts.answers.values()}) == len(parts.answers)


def test_key_changes_with_what_a_cell_is_made_of():
    a, b = (cells("loo", systems=["genrec"], seeds=[0], beams=beams).answers["genrec", 0] for beams in (50, 60))
    assert a.key != b.key
    assert a.key != cells("ties", systems=["genrec"], seeds=[0]).answers["genrec", 0].key


def test_own_sids_have_their_own_folder():
    letter, ours = (cells("loo", sids=sids).sids.folder for sids in ("letter", "ours"))
    assert letter != ours


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"systems": ["tigger"]}, "no system 'tigger' .*did you mean 'tiger'"),
        ({"protocols": ["page"]}, "no protocol 'page' .*did you mean 'pages'"),
        ({"systems": ["genrec_vocabulary"], "protocols": ["pages"]}, "genrec_vocabulary is asked under loo alone"),
        ({"beams": 20}, "beams 20 must be at least 50"),
    ],
)
def test_what_cannot_be_asked_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        choose_systems(completed(Settings(**settings)))


def test_a_reranked_row_brings_its_policy_and_is_made_of_it():
    def made(**settings):
        return cells("loo", systems=["genrec_reranked"], seeds=[1], **settings).answers

    assert [name for name, _ in made()] == ["genrec_wide", "genrec_reranked"]
    keys = [made(beams=beams)["genrec_reranked", 1].facts["policy"] for beams in (50, 60)]
    assert keys[0] != keys[1]


def test_a_reranked_row_orders_the_beams_of_its_policy(monkeypatch, tmp_path):
    _, catalog = write_market(tmp_path)
    make_policy(catalog).save_pretrained(tmp_path / "genrec_wide" / "seed0" / "policy")
    spec = next(spec for spec in TABLES[1] if spec.kind == "reranked")
    folder = tmp_path / spec.name / "seed0"
    Popularity(np.arange(catalog.n_items)).save_pretrained(folder / "reward")
    monkeypatch.setattr(paper_tables, "TREES_CLASS", "reward_models.scripted.Popularity")
    monkeypatch.setattr(paper_tables, "RERANK_WEIGHT", 1e6)
    monkeypatch.setattr(paper_tables, "fit_trees", lambda *_: None)
    paper_tables.answer(Settings(), "loo", spec, 0, tmp_path / "data", tmp_path / "sids", folder)
    with np.load(folder / "answers.npz") as kept:
        assert set(kept) == {"constrained"}
        assert (np.diff(kept["constrained"][:, :50]) < 0).all()  # the later a row, the more popular


def test_published_numbers_stand_beside_the_data_that_they_are_of():
    published = {data: [spec.name for spec in as_shown(TABLE_1, data=data) if spec.published]
                 for data in ("beauty", "movielens", "synthetic")}  # fmt: skip
    assert published == {"beauty": ["sasrec_bce", "bert4rec", "tiger", "lc_rec"], "movielens": [], "synthetic": []}


def test_no_system_named_is_all_of_them():
    assert choose_systems(completed(Settings())) == list(TABLES[1])


@pytest.mark.parametrize(
    ("softmax", "kinds"),
    [("vocabulary", {"constrained", "narrow", "free", "sampled"}), ("children", {"constrained", "narrow"})],
)
def test_free_answers_are_kept_of_policies_that_learnt_which_codes_exist(monkeypatch, tmp_path, softmax, kinds):
    _, catalog = write_market(tmp_path)
    make_policy(catalog, softmax=softmax).save_pretrained(tmp_path / "policy")
    monkeypatch.setattr(paper_tables, "fit_policy", lambda *_: None)
    spec = next(spec for spec in TABLES[1] if spec.name == "genrec")
    paper_tables.answer(Settings(), "pages", spec, 0, tmp_path / "data", tmp_path / "sids", tmp_path)
    with np.load(tmp_path / "answers.npz") as kept:
        assert set(kept) == kinds
        assert (kept["constrained"].shape[1], kept["narrow"].shape[1]) == (50, 20)
        assert "sampled" not in kept or kept["sampled"].shape[1] == 1


def test_rows_of_rl_are_those_made_with_what_holds_now(tmp_path, monkeypatch):
    monkeypatch.setattr(paper_tables, "RL_RUNS", tmp_path)
    settings = completed(Settings(seeds=[0, 1, 2]))
    key = paper_tables.protocol_cells(settings, "loo", TABLES[1]).answers["genrec_wide", 1].key
    config = (paper_tables.HERE.with_name("rl") / "beauty.yaml").read_text()
    facts = {"sft": key, "arguments": list(ARMS["grpo_sr"].arguments), "config": config}

    def rows(**changed):
        folder = tmp_path / "beauty" / "loo" / "letter" / "genrec_wide" / "grpo_sr" / "seed1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cell.json").write_text(json.dumps({"facts": facts | changed}))
        np.savez(folder / "columns.npz", **{"NDCG@10": np.array([0.5])})
        return paper_tables.aligned_columns(settings)

    assert rows()["grpo_sr"][1]["NDCG@10"].tolist() == [0.5]
    assert set(rows()["grpo_sr"]) == {1}
    assert rows(config="of before") == rows(sft="another") == rows(arguments=["--nll_coef", "9"]) == {}
