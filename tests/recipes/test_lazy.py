"""A plain policy made LazyAR by ``recipes/sft.py --init_from``."""

import json

import pytest
import torch
from safetensors.torch import load_file

from genrec_rl.errors import ConfigError
from recipes import sft
from tests.fixtures import write_market

SMALL = ["--hidden_size", "32", "--num_layers", "2", "--num_heads", "2", "--intermediate_size", "32"]
SMALL += ["--max_steps", "1", "--max_history", "8", "--eval_beams", "10", "--disable_tqdm", "true"]
SMALL += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    root = tmp_path_factory.mktemp("lazy")
    write_market(root)
    sft.main([*words(root), "--output_dir", str(root / "plain")])
    return root


def words(root) -> list[str]:
    return ["--data_dir", str(root / "data"), "--sid_dir", str(root / "sids"), "--target", "item", *SMALL]


def start(root, *more) -> list[str]:
    return [*words(root), "--init_from", str(root / "plain"), "--output_dir", str(root / "out"), *more]


@pytest.mark.slow
def test_plain_policy_is_made_lazy_and_trained(stages):
    sft.main(start(stages, "--lazy_layers", "1", "--learning_rate", "0"))
    config = json.loads((stages / "out" / "config.json").read_text())
    assert config["lazy_layers"] == 1
    before, after = (load_file(stages / name / "model.safetensors") for name in ("plain", "out"))
    assert all(after[name].equal(weights) for name, weights in before.items())
    assert after["model.fuse.mix"].equal(torch.eye(32).repeat(1, 2))
    assert json.loads((stages / "out" / "stage.json").read_text())["inputs"].keys() == {"data", "sids", "policy"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lazy_layers", "2"], "lazy_layers 2: of 2 layers at most 1"),
        (["--lazy_layers", "1", "--num_layers", "3"], "num_hidden_layers is 2 there and 3 here"),
        (["--lazy_layers", "1", "--target", "page"], "set page_items merged"),
        (["--mtp_coef", "0.3"], "set lazy_layers"),
    ],
)
def test_settings_that_do_not_fit_are_one_clear_error(stages, more, message):
    with pytest.raises(ConfigError, match=message):
        sft.main(start(stages, *more))


@pytest.mark.slow
def test_start_that_is_no_policy_is_named(stages):
    with pytest.raises(ConfigError, match="no finished 'sft' stage in nowhere"):
        sft.main([*words(stages), "--init_from", "nowhere"])
