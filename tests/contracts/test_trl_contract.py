"""The private methods of TRL and transformers that genrec_rl overrides or calls, by signature."""

import inspect

import pytest
import torch
import trl
from trl import GRPOTrainer, SFTTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.grpo_trainer import shuffle_sequence_dict, split_tensor_dict
from trl.trainer.utils import add_fused_lm_head


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_version_is_the_one_that_was_read():
    assert trl.__version__.startswith("1.16.")


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("_calculate_rewards", ["self", "inputs", "prompts", "completions", "completion_ids_list"]),
        ("_generate_and_score_completions", ["self", "inputs"]),
        ("_compute_loss", ["self", "model", "inputs"]),
        ("_prepare_inputs", ["self", "generation_batch"]),
        ("log", ["self", "logs", "start_time"]),
    ],
)
def test_overridden_grpo_methods_keep_their_signatures(method, expected):
    assert parameters(getattr(GRPOTrainer, method)) == expected


def test_scoring_method_begins_with_what_is_used():
    found = parameters(GRPOTrainer._get_per_token_logps_and_entropies)
    expected = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"]
    assert found[:8] == [*expected, "compute_entropy", "compute_aux_loss"]


@pytest.mark.parametrize("trainer", [GRPOTrainer, SFTTrainer])
def test_evaluation_loop_keeps_its_signature(trainer):
    expected = ["self", "dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"]
    assert parameters(trainer.evaluation_loop) == expected


def test_labels_are_counted_in_an_overridden_method_by_their_names():
    assert parameters(SFTTrainer._get_num_items_in_batch) == ["self", "batch_samples", "device"]
    source = inspect.getsource(SFTTrainer._get_num_items_in_batch)
    assert 'batch["shift_labels"]' in source
    assert 'batch["labels"][..., 1:]' in source


def test_fused_head_scores_shift_labels_as_they_stand_and_labels_shifted():
    source = inspect.getsource(add_fused_lm_head)
    assert "labels = labels[:, 1:]" in source
    assert "labels = shift_labels" in source


def test_rollouts_are_asked_for_with_prompts_and_trainer():
    source = inspect.getsource(GRPOTrainer._generate)
    assert "self.rollout_func(prompts, self)" in source
    assert '{"prompt_ids", "completion_ids", "logprobs"}' in source


def test_rewards_are_gathered_inside_the_overridden_method():
    assert "rewards_per_func = gather(rewards_per_func)" in inspect.getsource(GRPOTrainer._calculate_rewards)


def test_buffered_rows_are_permuted_and_split_along_their_first_axis():
    rows = {"wide": torch.arange(24).view(4, 3, 2), "flat": torch.arange(4), "none": None}
    shuffled = shuffle_sequence_dict(rows)
    assert torch.equal(shuffled["wide"], rows["wide"][shuffled["flat"]])
    assert sorted(shuffled["flat"].tolist()) == [0, 1, 2, 3]
    parts = split_tensor_dict(rows, 2)
    assert [part["flat"].tolist() for part in parts] == [[0, 1], [2, 3]]
    assert torch.equal(torch.cat([part["wide"] for part in parts]), rows["wide"])
    assert [part["none"] for part in parts] == [None, None]


def test_policy_loss_is_scaled_for_accumulation_by_the_trainer_itself():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert "self.current_gradient_accumulation_steps if mode" in source


def test_unwrapping_takes_model_and_accelerator():
    assert parameters(unwrap_model_for_generation)[:2] == ["model", "accelerator"]


def test_entropies_are_trained_only_where_the_trainer_says_so():
    source = inspect.getsource(GRPOTrainer.__init__)
    assert "self._entropy_bonus_enabled = self.entropy_coef != 0.0 or self.use_adaptive_entropy" in source


def test_a_batch_is_rolled_out_and_shuffled_before_its_loss():
    """A fused step keeps its trunk from the one to the other, and puts the groups back in order."""
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert source.index("self._generate_and_score_completions(generation_batch)") < source.index(
        "shuffle_sequence_dict(generation_batch)"
    )
