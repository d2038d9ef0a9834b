"""The recipe from words to answers, on a synthetic market and an untrained policy."""

import json
import os
import socket
import subprocess
import sys

import pytest
from fastapi.testclient import TestClient

from genrec_rl.config import parse_recipe
from genrec_rl.data.store import load_dataset
from genrec_rl.decoding.serving.app import create_app
from genrec_rl.errors import ConfigError
from genrec_rl.models.policy import BackboneSize, PromptGrammar, create_policy
from recipes import serve
from reward_models.scripted import Popularity
from tests.fixtures import write_market


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    dataset, catalog = write_market(root)
    policy = create_policy(catalog, grammar=PromptGrammar(), backbone=BackboneSize(16, 1, 2, 16))
    policy.save_pretrained(root / "sft")
    Popularity(dataset.popularity).save_pretrained(root / "reward")
    return root


@pytest.fixture
def words(stages):
    return [
        f"--{name}_dir={stages / folder}" for name, folder in (("policy", "sft"), ("data", "data"), ("sid", "sids"))
    ]


def settings_of(words):
    (settings,) = parse_recipe([serve.Settings], serve.__file__, words)
    return settings


def reward_words(stages):
    block = {"class_path": "reward_models.scripted.Popularity", "init_args": {"path": "elsewhere"}}
    return ["--reward_model", json.dumps(block), "--reward_dir", str(stages / "reward")]


def best_of(words, **body):
    with TestClient(create_app(serve.build(settings_of(words)))) as client:
        assert client.get("/health").json()["items"] == 60
        return client.post("/recommend", json={"history": [], "k": 20} | body).json()["items"]


def test_yaml_is_the_defaults_of_the_code():
    (from_yaml,) = parse_recipe([serve.Settings], serve.__file__, [])
    changed = {name for name, value in vars(serve.Settings()).items() if value != getattr(from_yaml, name)}
    assert changed == {"reward_model"}


def test_words_become_a_service_that_answers(words):
    items = best_of(words)
    assert len({item["item_id"] for item in items}) == 20


def test_rerank_orders_by_the_reward_model(stages, words):
    dataset = load_dataset(stages / "data")
    items = best_of([*words, *reward_words(stages), "--rerank", "1000000", "--widths", "60", "--base_width", "60"])
    found = [dataset.popularity[dataset.item_ids.index(item["item_id"])] for item in items]
    assert found == sorted(dataset.popularity, reverse=True)[:20]


def test_reward_model_is_not_looked_for_without_rerank(words, tmp_path):
    serve.build(settings_of([*words, "--reward_dir", str(tmp_path / "nowhere")]))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--widths", "50", "20"], "must ascend"),
        (["--base_width", "5"], "base_width 5 must lie in 20..80"),
        (["--batch_size", "0"], "batch_size is 0"),
        (["--capacity", "40"], "capacity 40 with max_queue 64: .* lower it to 25.6 at most"),
        (["--cache_size", "-1"], "cache_size is -1"),
        (["--rerank", "1", "--reward_model", "none"], "rerank needs a reward_model"),
        (["--rerank", "-1", "--reward_model", "none"], "rerank weight -1"),
        (["--policy_dir", "nowhere"], "no policy in 'nowhere'"),
        (["--data_dir", "nowhere"], "no finished 'prepare' stage in nowhere"),
    ],
)
def test_settings_that_cannot_be_served_are_refused_before_weights_load(words, more, message):
    with pytest.raises(ConfigError, match=message):
        serve.build(settings_of([*words, *more]))


@pytest.mark.parametrize("word", ["--port=0", "--port=70000", "--threads=0", "--max_items=0"])
def test_numbers_outside_their_range_are_refused(words, word):
    with pytest.raises(ConfigError, match="must lie in"):
        serve.main([*words, word])


def test_a_port_in_use_is_refused_before_anything_loads(words):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve.main([*words, f"--port={port}"])


@pytest.mark.slow
def test_service_imports_neither_trl_nor_wandb(words):
    """In a process of its own, which loads a policy and answers with it."""
    code = (
        "import sys\nfrom fastapi.testclient import TestClient\nfrom recipes import serve\n"
        "from genrec_rl.config import parse_recipe\n"
        "from genrec_rl.decoding.serving.app import create_app\n"
        "(settings,) = parse_recipe([serve.Settings], serve.__file__, sys.argv[1:])\n"
        "with TestClient(create_app(serve.build(settings))) as client:\n"
        "    assert client.post('/recommend', json={'history': []}).status_code == 200\n"
        "print([name for name in ('trl', 'wandb') if name in sys.modules])\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
