import json
import pickle

import pytest

from benchmarks.rl import cells as cells_of_rl
from benchmarks.rl.arms import ARMS
from benchmarks.rl.cells import HERE, Settings, judges, logged, margin_weight, seed_cells
from genrec_rl.config import parse_recipe
from genrec_rl.errors import ConfigError
from genrec_rl.rl.config import GRPOSRConfig
from recipes import grpo_sr


def test_side_by_side_an_arm_waits_for_both_judges_and_they_for_the_policy():
    cells = seed_cells(Settings(data="beauty"), 0)
    for name, made in cells.arms.items():
        after = ARMS[name].after
        assert made.needs == (cells.reward.folder, cells.gold.folder, *([cells.arms[after].folder] if after else []))
    assert cells.reward.needs == cells.gold.needs == (cells.sft[-1].folder,)
    assert cells.sft[1].folder in cells.sft[-1].needs


def test_arms_can_be_made_in_other_processes():
    cells = seed_cells(Settings(data="beauty"), 0)
    for cell in (*cells.sft, cells.reward, cells.gold, *cells.arms.values()):
        assert callable(pickle.loads(pickle.dumps(cell.run)))


def test_what_an_arm_starts_from_and_is_rewarded_by_is_in_its_key():
    def key(**settings):
        return seed_cells(Settings(**settings), 0).arms["grpo_sr"].key

    assert key() == key()
    assert len({key(), key(data="beauty"), key(policy="genrec_running"), key(protocol="loo")}) == 4


def test_next_items_are_asked_for_where_the_protocol_asks_for_them():
    assert "running" in seed_cells(Settings(data="beauty", protocol="loo"), 0).reward.facts["words"]
    assert "page" in seed_cells(Settings(data="beauty"), 0).reward.facts["words"]


def test_a_row_that_is_no_policy_is_refused():
    with pytest.raises(ConfigError, match="'popularity' is no policy of Table 1"):
        seed_cells(Settings(policy="popularity"), 0)


def test_the_weight_of_re_ranking_is_in_the_key_of_that_row(monkeypatch):
    def key():
        return seed_cells(Settings(), 0).arms["best_of_n"].key

    before = key()
    monkeypatch.setattr(cells_of_rl, "margin_weight", lambda _: 9.0)
    assert key() != before


def test_long_runs_have_cells_of_their_own_and_share_what_is_not_trained():
    short, long = (seed_cells(Settings(data="beauty", length=length), 0) for length in ("short", "long"))
    assert [name for name in ARMS if short.arms[name].folder == long.arms[name].folder] == ["sft"]
    assert short.arms["sft"].key == long.arms["sft"].key
    assert short.arms["listwise_kl"].key != long.arms["listwise_kl"].key
    assert short.reward.folder == long.reward.folder


def test_a_length_that_a_data_set_has_not_is_refused():
    with pytest.raises(ConfigError, match="not set up for movielens, only for beauty; leave --length out"):
        seed_cells(Settings(length="long"), 0)


def test_a_second_round_is_another_cell_where_the_first_or_the_refreshing_is():
    arms = seed_cells(Settings(), 0).arms
    again, refreshed = arms["grpo_sr_again"], arms["grpo_sr_refreshed"]
    assert again.facts["after"] == refreshed.facts["after"] == arms["grpo_sr"].key
    assert len({arms["grpo_sr"].key, again.key, refreshed.key}) == 3


def test_a_refreshed_reward_learns_from_the_policy_that_goes_on(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(cells_of_rl.paper_tables, "run_script", lambda *words: given.extend(words))
    run = seed_cells(Settings(), 0).arms["grpo_sr_refreshed"].run
    block = run.keywords["teacher"].block(tmp_path, run.args[3])
    assert block["init_args"]["path"] == str(tmp_path / "model")
    assert given[0] == "recipes/train_xgb.py"
    assert given.count("--policy_dir") == 1
    assert given[given.index("--policy_dir") + 1].endswith("grpo_sr/seed0/policy")


def test_the_markets_reward_is_refreshed_without_words_of_trees(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(cells_of_rl.paper_tables, "run_script", lambda *words: given.extend(words))
    seed_cells(Settings(data="synthetic"), 0).arms["grpo_sr_refreshed"].run.keywords["teacher"].block(
        tmp_path, tmp_path
    )
    assert given[0] == "recipes/train_reward.py"
    assert "--objective" not in given


def test_an_ensemble_is_made_of_both_judges_and_of_no_proposals(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(cells_of_rl.paper_tables, "run_script", lambda *words: given.extend(words))
    cells = seed_cells(Settings(), 0)
    run = cells.arms["grpo_sr_ensemble"].run
    assert run.keywords["teacher"].block(tmp_path, run.args[3])["class_path"] == "reward_models.ensemble.Ensemble"
    assert "--policy_dir" not in given
    place = given.index("--members")
    assert given[place + 1 : place + 3] == [f"{judge.folder}/model" for judge in (cells.reward, cells.gold)]


def test_the_other_judge_teaches_from_its_own_folder(tmp_path):
    for data, own in (("movielens", "SIM"), ("synthetic", "XGB")):
        cells = seed_cells(Settings(data=data), 0)
        block = cells.arms["grpo_sr_by_gold"].run.keywords["teacher"].block(tmp_path, tmp_path)
        assert block["class_path"].endswith(own)
        assert block["init_args"]["path"] == f"{cells.gold.folder}/model"


def test_a_gentler_arm_of_a_long_run_has_few_large_steps_and_checkpoints_at_their_end(tmp_path):
    long = Settings(data="beauty", protocol="loo", length="long")
    words = seed_cells(long, 0).arms["grpo_sr_gentler"].facts["arguments"]
    assert words[: len(ARMS["grpo_sr_gentler"].arguments)] == ARMS["grpo_sr_gentler"].arguments
    config = ["--config", str(HERE / "beauty_long.yaml"), "--output_dir", str(tmp_path), *words]
    _, args = parse_recipe([grpo_sr.Settings, GRPOSRConfig], grpo_sr.__file__, config)
    assert args.max_steps == args.eval_steps == args.save_steps == 250


def test_reranking_has_the_weight_of_the_policy_term():
    assert margin_weight(Settings(data="movielens")) == 3.0


def test_the_market_is_in_the_key_of_its_cells_alone():
    assert "market" in seed_cells(Settings(data="synthetic"), 0).sft[0].facts
    assert "market" not in seed_cells(Settings(), 0).sft[0].facts


def test_trees_reward_and_sim_judges_but_on_the_market():
    words = {}
    for data in ("movielens", "beauty", "synthetic"):
        cells = seed_cells(Settings(data=data), 0)
        words[data] = ["words" in cell.facts for cell in (cells.reward, cells.gold)]
    assert words == {"movielens": [True, False], "beauty": [True, False], "synthetic": [False, True]}
    assert judges(Settings(data="synthetic"))["reward"][1] == "reward_models.sim.SIM"


def test_metrics_are_read_where_they_were_logged(tmp_path):
    rows = [{"step": 0, "eval/ndcg@10": 0.1}, {"step": 5, "train/loss": 1.0}, {"step": 9, "eval/ndcg@10": 0.2}]
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert logged(tmp_path, "eval/ndcg@10") == ([0, 9], [0.1, 0.2])
