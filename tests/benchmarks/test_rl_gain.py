import json

import numpy as np
import pytest

from benchmarks import rl_gain
from benchmarks.rl.arms import ARMS, PAIRS, SIGNS, TRIED
from benchmarks.rl.cells import HERE, Settings
from benchmarks.rl_gain import as_markdown, chosen_cells, judged_by_others, read_curves, unusual
from benchmarks.tables.measure import Requests
from genrec_rl.config import parse_recipe
from genrec_rl.errors import ConfigError
from genrec_rl.rl.config import GRPOSRConfig
from recipes import grpo_sr


@pytest.mark.parametrize("data", ["movielens", "beauty", "beauty_long", "synthetic"])
@pytest.mark.parametrize("arm", [name for name, arm in ARMS.items() if arm.arguments is not None])
def test_every_arm_is_one_that_the_recipe_takes(tmp_path, data, arm):
    words = ["--config", str(HERE / f"{data}.yaml"), "--output_dir", str(tmp_path), "--exclude_seen", "false"]
    words += ARMS[arm].arguments
    _, args = parse_recipe([grpo_sr.Settings, GRPOSRConfig], grpo_sr.__file__, words)
    assert args.policy_term == {"sft_continued": "none"}.get(
        arm, "listwise_kl" if arm.startswith("listwise_kl") else "grpo"
    )
    assert (args.nll_coef == 0) == arm.startswith("grpo") * ("sr" not in arm)
    assert args.anchor_positives == (arm not in ("grpo", "grpo_no_gate", "grpo_sr_no_anchor"))


def test_pairs_are_of_arms():
    assert {name for pair in PAIRS for name in pair} == set(ARMS)


def test_what_is_not_the_default_has_a_file_of_its_own():
    assert unusual(Settings()) == unusual(Settings(data="beauty")) == []
    assert unusual(Settings(protocol="loo", sids="letter", policy="genrec_wide")) == ["loo", "letter", "genrec_wide"]
    assert unusual(Settings(data="beauty", length="long", exclude_seen=True)) == ["long", "unseen"]


def test_long_runs_are_of_a_few_arms_unless_more_are_named():
    def names(**settings):
        return {
            cell.folder.parent.name for cell in chosen_cells(Settings(data="beauty", length="long", **settings), 0)
        }

    assert {"sft", "sft_continued_long", "best_of_n_long", "listwise_kl_per_mass_long"} < names()
    assert "grpo_long" not in names()
    assert "grpo_long" in names(arms=["grpo"])


def test_unknown_arm_offers_the_nearest(monkeypatch):
    monkeypatch.setattr(rl_gain, "parse", lambda _: Settings(arms=["grpo_s"]))
    with pytest.raises(ConfigError, match="did you mean 'grpo_sr'"):
        rl_gain.main()


def test_what_was_tried_runs_by_name_with_the_arms_it_goes_on_from():
    usual = {made.name for made in chosen_cells(Settings(), 0)}
    assert not any(f"{name}, seed 0" in usual for name in TRIED)
    tried = [made.name for made in chosen_cells(Settings(arms=["tried"]), 0)]
    assert {f"{name}, seed 0" for name in TRIED} <= set(tried)
    assert tried.index("grpo_sr, seed 0") < tried.index("grpo_sr_refreshed, seed 0")
    assert "grpo_sr_refreshed, seed 0" not in [
        made.name for made in chosen_cells(Settings("synthetic", arms=["tried"]), 0)
    ]


def test_an_arm_that_the_data_have_no_use_for_is_refused_by_name():
    with pytest.raises(ConfigError, match="grpo_sr_refreshed is none of synthetic's: its reward learns from no"):
        chosen_cells(Settings(data="synthetic", arms=["grpo_sr_refreshed"]), 0)


def test_samples_are_no_arm_where_seen_items_are_excluded():
    with pytest.raises(ConfigError, match="grpo_sr_sampled is none of movielens's: samples are drawn of all items"):
        chosen_cells(Settings(exclude_seen=True, arms=["grpo_sr_sampled"]), 0)


def test_gold_does_not_judge_what_it_taught():
    columns = {"gold@10": np.ones(2), "gold_mean@10": np.ones(2), "NDCG@10": np.ones(2)}
    assert [*judged_by_others("grpo_sr_by_gold", columns)] == ["NDCG@10"]
    assert [*judged_by_others("grpo_sr_ensemble", columns)] == ["NDCG@10"]
    assert [*judged_by_others("grpo_sr", columns)] == [*columns]


def test_curves_are_of_the_lowest_seed_without_what_was_tried_or_had_other_prompts(tmp_path):
    done = {}
    for name in ("sft", "sft_continued", "grpo_sr", "grpo_sr_gumbel"):
        for seed in (2, 1):
            done.setdefault(name, {})[seed] = tmp_path / name / str(seed)
            (tmp_path / name / str(seed) / "policy").mkdir(parents=True)
            row = {"step": seed, "train/reward/raw": 0.1, "eval/gold_mean@10": 0.2, "eval/ndcg@10": 0.3}
            (tmp_path / name / str(seed) / "policy" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    curves = read_curves(done, watched="true")
    assert curves["train/reward/raw"] == {"grpo_sr": ([1], [0.1])}
    assert curves["eval/true_mean@10"] == {name: ([1], [0.2]) for name in ("sft_continued", "grpo_sr")}
    assert "eval/gold_mean@10" not in curves


def test_a_report_of_some_arms_alone_is_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["rl_gain.py", "--report", "true", "--arms", "grpo"])
    with pytest.raises(ConfigError, match="every arm that is done, not grpo alone"):
        rl_gain.main()


def test_signs_are_of_pairs_and_as_the_papers_rows_say():
    at = {"HR@50": 0, "R@1": 1, "HaR@10": 2}
    for (a, b), metric, sign in SIGNS:
        assert (a, b) in PAIRS
        difference = ARMS[a].paper[at[metric]] - ARMS[b].paper[at[metric]]
        assert (difference > 0) == (sign == "+")


def test_true_preference_and_signs_are_shown_where_they_are_known():
    row = {"NDCG@10": [0.1], "true_mean@10": [0.4], "distinct@1": [5]}
    difference = {"HaR@10": {"diff": -0.01, "lo": -0.02, "hi": 0.0}}
    result = {"command": "x", "commit": "abc", "systems": {"grpo_sr": row}, "paired": {"grpo_sr-grpo": difference}}
    result["paired_by_seed"], result["paired_seeds"] = {}, {"grpo_sr-grpo": 1}
    text = as_markdown(result)
    assert "true_mean@10" in text
    assert "true_mean@1 " not in text
    assert "- grpo_sr - grpo, HaR@10: the paper -, here -0.0100 [-0.0200, +0.0000]" in text


def test_table_has_a_row_an_arm_and_the_papers_beside():
    row = {"NDCG@10": [0.1, 0.2], "HR@50": [0.3, 0.3], "distinct@1": [0.5, 0.5]}
    difference = {"NDCG@10": {"diff": 0.01, "lo": -0.01, "hi": 0.03}}
    result = {"command": "python x", "commit": "abc", "systems": {"grpo": row}, "paired": {"grpo-sft": difference}}
    difference |= {"NDCG@10/held_out": {"diff": 0.02, "lo": 0.01, "hi": 0.03}}
    result["paired_by_seed"] = {"grpo-sft": {"0": difference["NDCG@10"], "2": difference["NDCG@10/held_out"]}}
    result["paired_seeds"] = {"grpo-sft": 2}
    text = as_markdown(result)
    assert "| **grpo**, GRPO | 2 |" in text
    assert ".1500 ± .0707" in text
    assert "| *GRPO, the paper's Table 3 (its own data)* | |  |  | .7248 |" in text
    assert "- grpo - sft (2 seeds): NDCG@10 +0.0100 [-0.0100, +0.0300]" in text
    assert "- grpo - sft: 0: +0.0100 [-0.0100, +0.0300]; 2: +0.0200 [+0.0100, +0.0300]" in text
    assert "- grpo - sft: held_out +0.0200 [+0.0100, +0.0300]" in text


def test_each_seed_is_compared_with_the_same_seed_of_the_other():
    requests = Requests(np.array(["a", "b"]), [np.array([1])] * 2, [np.array([], int)] * 2, np.array([True, False]))
    columns = {
        name: {seed: {m: np.full(2, value) for m in ("Recall@10", "NDCG@10", "HR@10")} for seed, value in of.items()}
        for name, of in {"listwise_kl": {1: 0.3, 2: 0.5}, "sft": {0: 0.9, 1: 0.2, 2: 0.1}}.items()
    }
    found = rl_gain.pair_by_seed(columns, requests)
    assert {seed: round(of["diff"], 6) for seed, of in found["listwise_kl-sft"].items()} == {"1": 0.1, "2": 0.4}
    assert set(found) == {"listwise_kl-sft"}
