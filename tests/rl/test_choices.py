import pytest

from genrec_rl.errors import ConfigError
from genrec_rl.models.prompts import PromptGrammar
from genrec_rl.rl.choices import GUARDED, refuse_for_policy
from genrec_rl.rl.config import GRPOSRConfig
from tests.fixtures import make_policy

CHOOSING = {
    "load_best_model_at_end": True, "eval_on_start": True, "metric_for_best_model": "eval_ndcg@10",
    "eval_strategy": "steps", "eval_steps": 5, "save_steps": 5,
}  # fmt: skip


def config(tmp_path, **settings):
    return GRPOSRConfig(**{"output_dir": str(tmp_path), "use_cpu": True} | settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "gspo"}, "loss_type 'gspo' is not one of grpo, bnpo"),
        ({"policy_term": "reinforce"}, "policy_term 'reinforce'"),
        ({"policy_term": "none", "nll_coef": 0.0}, "nothing is learnt"),
        ({"rollouts_from": "start"}, "set policy_term listwise_kl"),
        ({"margin_weight": -1.0}, "margin_weight is -1.0"),
        ({"policy_term": "listwise_kl", "beta": 0.1}, "beta 0.1 is of TRL's policy loss"),
        ({"policy_term": "none", "num_iterations": 3}, "num_iterations 3 is of TRL's policy loss"),
        ({"policy_term": "listwise_kl", "loss_type": "dapo"}, "loss_type dapo is of TRL's policy loss"),
        ({"policy_term": "listwise_kl", "margin_weight": 0.0, "nll_coef": 0.0}, "teaches the start to itself"),
        ({"history_dropout": 1.0}, "history_dropout 1.0 must be at least 0 and below 1"),
        ({"length_groups": 0}, "length_groups is 0, at least 1"),
        ({"max_positives": 0}, "max_positives is 0"),
        ({"max_positives": None}, "max_positives is None, at least 1"),
        ({"rollouts": "bad", "patience": None}, "rollouts 'bad'"),
        ({"nll_coef": -1.0}, "nll_coef is -1.0"),
        ({"nll_reduction": "max"}, "nll_reduction 'max'"),
        ({"rollouts": "random"}, "not one of beam, gumbel, sample"),
        ({"generation_kwargs": {"do_sample": False}}, "beams do not sample"),
        ({"per_device_train_batch_size": 17}, "17 must be a multiple of num_generations 16"),
        ({"nll_coef": float("inf")}, "nll_coef is inf"),
        ({"fused_step": "never!"}, "fused_step 'never!' is not one of auto"),
        ({"top_k": 5}, "top_k 5: beams do not sample"),
        ({"temperature": 0.5}, "temperature 0.5: beam rollouts"),
        ({"use_vllm": True}, "use_vllm: merged prompts"),
        ({"mask_truncated_completions": True}, "would mask every SID"),
        ({"num_generations": 6}, "must be a multiple of num_generations 6"),
        ({"credit": "token"}, "credit 'token' is not one of"),
        ({"scale_rewards": "max"}, "scale_rewards 'max'"),
        ({"min_std": -0.1}, "min_std is -0.1"),
        ({"page_coef": float("nan")}, "page_coef is nan"),
        ({"max_page_items": 0}, "max_page_items is 0"),
        ({"patience": -1}, "patience is -1"),
        ({"probe_requests": -1}, "probe_requests is -1"),
        ({"rollouts": "sample", "policy_term": "listwise_kl"}, "set rollouts: gumbel"),
        ({"per_mass": True}, "per_mass divides the loss of listwise_kl, and policy_term is grpo"),
        ({"rollouts": "sample", "rollout_weights": "policy"}, "set rollouts: beam"),
        ({"pad_to_multiple_of": 8}, "pad_to_multiple_of 8: an answer has exactly the tokens of a SID"),
        ({"rollouts": "sample", "exclude_seen": True}, "exclude_seen: .* set rollouts: gumbel"),
        ({"inject_positives": True, "exclude_seen": True}, "in spite of exclude_seen"),
        ({"rollout_weights": "policy", "credit": "level"}, "each is a baseline of its own"),
        ({"rollout_weights": "policy", "inject_positives": True}, "has no log-probability"),
        ({"credit": "level", "importance_sampling_level": "sequence"}, "mean over tokens"),
        ({"min_std": 0.1, "scale_rewards": "none"}, "divides by no deviation"),
        ({"invalid_rollouts": "drop", "constrained_rollouts": True}, "makes no invalid SID"),
        ({"format_coef": 0.1, "constrained_rollouts": True}, "every format reward is the same"),
        ({"format_coef": 0.1, "format_rollouts": 17}, r"must lie in 1\.\.16"),
        ({"min_std": 0.1, "multi_objective_aggregation": "normalize_then_sum"}, "set it to sum_then_normalize"),
        ({"inject_positives": True, "policy_term": "none"}, "reads no rollouts"),
        ({"min_std": 0.1, "policy_term": "none"}, "min_std 0.1 is of TRL's policy loss"),
        ({"loss_type": "cispo"}, "set epsilon_high to 1 or more"),
        ({"guard": True}, "set load_best_model_at_end and eval_on_start"),
        (CHOOSING | {"guard": True, "metric_for_best_model": "eval_hr@10"}, "not eval_hr@10"),
        ({"patience": 2}, "set load_best_model_at_end: true"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        config(tmp_path, **settings)
    assert "\n" not in str(error.value)


def test_a_guard_chooses_by_its_own_metric_and_reads_back(tmp_path):
    args = config(tmp_path, guard=True, **CHOOSING)
    assert args.metric_for_best_model == GUARDED
    assert args.greater_is_better
    assert config(tmp_path, guard=True, **CHOOSING | {"metric_for_best_model": GUARDED}).guard


def test_each_policy_term_has_its_own_weight_in_the_check(tmp_path):
    assert config(tmp_path, margin_weight=3.0, check_weight=0.5).weight_in_check == 0.5
    assert config(tmp_path, margin_weight=3.0, policy_term="listwise_kl").weight_in_check == 3.0


def test_page_answers_alone_are_something_to_learn(tmp_path):
    assert config(tmp_path, policy_term="none", nll_coef=0.0, page_coef=0.5).page_coef == 0.5


@pytest.mark.parametrize(
    ("policy", "settings", "message"),
    [
        ({"softmax": "children"}, {}, "knows nothing of SIDs that do not exist"),
        ({"grammar": PromptGrammar(page_items="merged")}, {"page_coef": 0.1}, "as codes, the policy merged"),
        ({"lazy_layers": 1}, {"page_coef": 0.1}, r"as codes, the policy not at all \(LazyAR\)"),
        ({}, {"constrained_rollouts": True}, "num_generations is 16, but the catalogue holds 12 SIDs; lower it"),
    ],
)
def test_what_the_policy_or_its_catalogue_cannot_is_one_line(catalog, tmp_path, policy, settings, message):
    args = config(tmp_path, **settings)
    with pytest.raises(ConfigError, match=message) as error:
        refuse_for_policy(args, make_policy(catalog, **policy), n_sids=catalog.trie.n_sids)
    assert "\n" not in str(error.value)


def test_samples_may_be_more_than_the_catalogue_holds(catalog, tmp_path):
    args = config(tmp_path, constrained_rollouts=True, rollouts="sample")
    refuse_for_policy(args, make_policy(catalog), n_sids=catalog.trie.n_sids)


def test_a_group_may_hold_the_whole_catalogue(catalog, tmp_path):
    args = config(tmp_path, constrained_rollouts=True, num_generations=12, per_device_train_batch_size=12)
    refuse_for_policy(args, make_policy(catalog, softmax="children"), n_sids=12)
