"""The words of --policies, refused before any work starts."""

import pytest
import torch

from genrec_rl.data.values import ValueBuckets
from genrec_rl.decoding.expected_value import ValueReranker
from genrec_rl.errors import ConfigError
from genrec_rl.evaluation.policies import (
    BeamOptions,
    load_recommender,
    parse_policies,
    policy_systems,
    valued_systems,
)
from tests.fixtures import make_policy


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_words_become_names_and_folders_in_order(folder):
    assert parse_policies([f"sft={folder}", f"grpo_sr={folder}"]) == {"sft": folder, "grpo_sr": folder}


@pytest.mark.parametrize("word", ["runs/demo/sft", "=runs/demo/sft", "sft="])
def test_word_of_another_form_shows_an_example(word):
    with pytest.raises(ConfigError, match=r"is not name=DIR; write --policies sft=runs/demo/sft"):
        parse_policies([word])


def test_name_given_twice_is_refused(folder):
    with pytest.raises(ConfigError, match="'sft' stands twice"):
        parse_policies([f"sft={folder}", f"sft={folder}"])


def test_folder_without_a_policy_names_the_command(tmp_path):
    with pytest.raises(ConfigError, match=r"no policy in .*recipes/sft\.py"):
        parse_policies([f"sft={tmp_path}"])


def test_policies_decode_both_ways_and_load_late(policy, catalog, tmp_path):
    policy.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (system,) = policy_systems({"sft": tmp_path}, catalog, BeamOptions())
    assert system.decodings == ("constrained", "unconstrained")


def test_options_reach_the_recommender(tmp_path, catalog, policy):
    policy.save_pretrained(tmp_path)
    options = BeamOptions(batch_size=3, beam_widths=(2, 4, 4), normalisation="level", dtype="bfloat16", per_beam=3)
    recommender = load_recommender(tmp_path, catalog=catalog, options=options)
    assert (recommender.batch_size, recommender.beam_widths) == (3, (2, 4, 4))
    assert (recommender.normalisation, recommender.per_beam) == ("level", 3)
    assert recommender.policy.model.dtype == torch.bfloat16


def test_protocol_names_what_changes_the_numbers(tmp_path, catalog):
    for name, softmax in (("sft", "vocabulary"), ("grpo", "vocabulary"), ("fast", "children")):
        make_policy(catalog, softmax=softmax).save_pretrained(tmp_path / name)
    folders = {name: tmp_path / name for name in ("sft", "grpo", "fast")}
    expected = "the whole vocabulary (sft, grpo) and codes of real items (fast)"
    assert BeamOptions().describe(50, folders) == f"beam widths 50; probabilities over {expected}; float32"
    options = BeamOptions(beam_widths=(2, 4), normalisation="level", continue_page=True, sample_seed=7)
    assert options.describe(4, {"sft": tmp_path / "sft"}) == (
        "beam widths 2, 4; probabilities over a level's codes (sft); float32; the request's own day begins the "
        "answer; drawn with seed 7, not the best"
    )
    assert options.describe(4, {}) == "no policies"
    options = BeamOptions(beam_widths=(2, 4), per_beam=2)
    assert options.describe(4, {"sft": tmp_path / "sft"}).startswith("beam widths 2, 4, 2 of a beam's own; ")


def test_policy_that_never_learnt_which_codes_exist_is_asked_constrained_only(tmp_path, catalog):
    make_policy(catalog, softmax="children").save_pretrained(tmp_path)
    (system,) = policy_systems({"fast": tmp_path}, catalog, BeamOptions())
    assert system.decodings == ("constrained",)


def test_unknown_dtype_is_refused():
    with pytest.raises(ConfigError, match="float32, bfloat16"):
        BeamOptions(dtype="int8")


@pytest.mark.parametrize(("options", "message"), [
    ({"batch_size": 0}, "batch_size is 0"), ({"beam_widths": (0, 4)}, "at least 1"),
    ({"normalisation": "row"}, "vocabulary, level"), ({"beam_widths": (2.5, "4")}, "not whole numbers"),
    ({"beam_widths": ()}, "at least 1"), ({"per_beam": 0}, "per_beam is 0"),
    ({"beam_widths": (2, 4), "per_beam": 1}, "per_beam 1: 2 beams"),
    ({"per_beam": 2, "sample_seed": 0}, "is no sample"),
])  # fmt: skip
def test_impossible_options_are_refused_before_any_work(options, message):
    with pytest.raises(ConfigError, match=message):
        BeamOptions(**options)


@pytest.mark.parametrize("widths", [(5, 10), (5, 10, 20)])
def test_widths_must_fit_levels_and_answers(widths):
    with pytest.raises(ConfigError, match="must be 3 numbers, one a SID level, and end with 10"):
        BeamOptions(beam_widths=widths).check(beams=10, n_levels=3)


def test_policies_with_value_tokens_are_asked_once_more_by_expected_value(tmp_path, catalog):
    for name, values in (("sft", None), ("vsl", ValueBuckets((), (0.0, 1.0)))):
        make_policy(catalog, values=values).save_pretrained(tmp_path / name)
    folders = {name: tmp_path / name for name in ("sft", "vsl")}
    (system,) = valued_systems(folders, policy_systems(folders, catalog, BeamOptions()), weight=0.5)
    assert (system.name, system.decodings) == ("vsl_valued", ("constrained",))
    assert isinstance(system.load(), ValueReranker)
    with pytest.raises(ConfigError, match="no policy has value tokens"):
        valued_systems(folders, policy_systems({"sft": tmp_path / "sft"}, catalog, BeamOptions()), weight=0.5)
