import json
import pickle

import numpy as np
import pytest

from benchmarks.rl import cells as cells_of_rl
from benchmarks.rl.arms import ARMS
from benchmarks.rl.cells import (
    HERE,
    Settings,
    Shared,
    arm_words,
    judges,
    logged,
    margin_weight,
    measure_unseen,
    scorer_blocks,
    seed_cells,
)
from genrec_rl.config import parse_recipe
from genrec_rl.errors import ConfigError
from genrec_rl.rl.config import GRPOSRConfig
from recipes import grpo_sr
from tests.fixtures import make_example


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


def test_what_users_have_taken_is_excluded_from_proposals_rollouts_and_answers_alike():
    for data in ("movielens", "synthetic"):
        plain, unseen = (seed_cells(Settings(data, exclude_seen=excluded), 0) for excluded in (False, True))
        assert plain.sft[-1].key == unseen.sft[-1].key
        assert all(plain.arms[name].key != unseen.arms[name].key for name in unseen.arms)
        assert {cell.folder.parent.parent.name for cell in unseen.arms.values()} == {"genrec_unseen"}
        for cells, told in ((plain, "false"), (unseen, "true")):
            shared = next(x for x in cells.arms["grpo_sr"].run.args if isinstance(x, Shared))
            assert shared.words[-2:] == ("--exclude_seen", told)


def test_a_judge_that_learns_from_the_log_alone_is_made_once():
    plain, unseen = (seed_cells(Settings(exclude_seen=excluded), 0) for excluded in (False, True))
    assert plain.gold.folder == unseen.gold.folder
    assert plain.reward.folder != unseen.reward.folder
    assert unseen.reward.facts["words"][-2:] == ["--exclude_seen", "true"]


def test_accuracy_without_what_users_have_taken_moves_the_others_up():
    found = measure_unseen(np.array([[3, *range(4, 12), 2, 1]]), [make_example([3], [1], disliked=[4])])
    assert found["HR@10/unseen"].tolist() == [1.0]
    assert found["NDCG@10/unseen"].tolist() == pytest.approx([1 / np.log2(10)])


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


def test_a_second_round_is_another_cell_where_the_first_or_the_teacher_is():
    arms = seed_cells(Settings(), 0).arms
    again, refreshed = arms["grpo_sr_again"], arms["grpo_sr_refreshed"]
    assert again.facts["after"] == refreshed.facts["after"] == arms["grpo_sr"].key
    assert again.facts["arguments"] == refreshed.facts["arguments"]
    assert again.key != refreshed.key
    assert arms["grpo_sr"].folder in again.needs


def test_a_reward_made_anew_has_its_words_and_recipe_in_the_key():
    facts = seed_cells(Settings(), 0).arms["listwise_kl_refreshed"].facts["taught_by"]
    assert "rank:ndcg" in facts["words"]
    assert "n_trees" in facts["recipe"]


def test_only_trees_can_be_refreshed():
    assert "grpo_sr_refreshed" in seed_cells(Settings(), 0).arms
    assert not {"grpo_sr_refreshed", "listwise_kl_refreshed"} & set(seed_cells(Settings(data="synthetic"), 0).arms)


@pytest.fixture
def told(monkeypatch):
    """What scripts are told, each as a list."""
    calls = []
    monkeypatch.setattr(cells_of_rl.paper_tables, "run_script", lambda *words: calls.append(words))
    return calls


def test_a_refreshed_reward_learns_from_the_policy_that_goes_on(told, tmp_path):
    cell = seed_cells(Settings(), 0).arms["grpo_sr_refreshed"]
    _, arm, shared, start = cell.run.args
    assert start == seed_cells(Settings(), 0).arms["grpo_sr"].folder / "policy"
    block = shared.teachers[arm.taught_by].block(tmp_path, start)
    assert block == {"class_path": "reward_models.xgb.XGB", "init_args": {"path": str(tmp_path / "model")}}
    (words,) = told
    assert words[0] == "recipes/train_xgb.py"
    assert words.count("--policy_dir") == 1
    assert words[words.index("--policy_dir") + 1] == str(start)
    assert words[-2:] == ("--output_dir", str(tmp_path / "model"))


def test_an_ensemble_is_made_of_both_judges_and_of_no_proposals(told, tmp_path):
    cells = seed_cells(Settings(), 0)
    _, arm, shared, start = cells.arms["grpo_sr_ensemble"].run.args
    assert shared.teachers[arm.taught_by].block(tmp_path, start)["class_path"] == "reward_models.ensemble.Ensemble"
    (words,) = told
    assert "--policy_dir" not in words
    place = words.index("--members")
    assert words[place + 1 : place + 3] == tuple(f"{judge.folder}/model" for judge in (cells.reward, cells.gold))


def test_a_judge_teaches_from_its_own_folder(told, tmp_path):
    for data, names in (("movielens", ("XGB", "SIM")), ("synthetic", ("SIM", "XGB"))):
        cells = seed_cells(Settings(data=data), 0)
        for arm, judge, name in zip(("grpo_sr", "grpo_sr_by_gold"), (cells.reward, cells.gold), names, strict=True):
            _, given, shared, start = cells.arms[arm].run.args
            block = shared.teachers[given.taught_by].block(tmp_path, start)
            assert block["class_path"].endswith(name)
            assert block["init_args"]["path"] == f"{judge.folder}/model"
    assert not told


def words_of(monkeypatch, arm, data="movielens", softmax="vocabulary"):
    monkeypatch.setattr(cells_of_rl, "trained_over", lambda _: softmax)
    settings = Settings(data=data)
    _, given, shared, start = seed_cells(settings, 0).arms[arm].run.args
    taught_by = {"class_path": "teacher", "init_args": {}}
    blocks = scorer_blocks(settings, shared)
    words = arm_words(given, shared, blocks, taught_by, start_dir=start, policy_dir=start)
    return dict(zip(words[::2], words[1::2], strict=True)), start, blocks


def test_an_arm_is_told_its_start_its_teacher_and_its_own_arguments(monkeypatch):
    words, start, _ = words_of(monkeypatch, "grpo_sr_no_gate")
    assert words["--policy_dir"] == str(start)
    assert json.loads(words["--reward_model"])["class_path"] == "teacher"
    assert (words["--gate"], words["--nll_coef"]) == ("none", "0.2")
    assert "--constrained_rollouts" not in words
    assert words_of(monkeypatch, "grpo_sr", softmax="children")[0]["--constrained_rollouts"] == "true"


@pytest.mark.parametrize(
    ("arm", "data", "watched"),
    [
        ("grpo_sr", "movielens", "gold"),
        ("grpo_sr_refreshed", "movielens", "gold"),
        ("grpo_sr_by_gold", "movielens", "R"),
        ("grpo_sr_by_gold", "synthetic", "true"),
        ("grpo_sr_ensemble", "synthetic", "true"),
    ],
)
def test_who_teaches_an_arm_does_not_watch_it(monkeypatch, arm, data, watched):
    words, _, blocks = words_of(monkeypatch, arm, data)
    assert json.loads(words["--gold_model"]) == blocks[watched]


def test_an_arm_that_both_judges_taught_has_nobody_to_watch_it(monkeypatch):
    assert words_of(monkeypatch, "grpo_sr_ensemble")[0]["--gold_model"] == "none"


def test_few_large_steps_end_at_a_checkpoint(tmp_path):
    words = seed_cells(Settings(data="beauty", protocol="loo", length="long"), 0).arms["grpo_sr_few_steps"]
    config = ["--config", str(HERE / "beauty_long.yaml"), "--output_dir", str(tmp_path), *words.facts["arguments"]]
    _, args = parse_recipe([grpo_sr.Settings, GRPOSRConfig], grpo_sr.__file__, config)
    assert args.max_steps == args.eval_steps == args.save_steps == 250
    assert args.learning_rate == 5e-5


def test_a_reward_that_learnt_otherwise_is_another_start(monkeypatch):
    before = seed_cells(Settings(data="beauty"), 0)
    monkeypatch.setattr(cells_of_rl, "TREES", ("--objective", "binary:logistic"))
    after = seed_cells(Settings(data="beauty"), 0)
    assert before.reward.key != after.reward.key
    assert before.arms["grpo_sr"].key != after.arms["grpo_sr"].key
    assert before.gold.key == after.gold.key


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
