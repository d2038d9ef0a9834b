import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TERMS = ("grpo", "listwise_kl", "rspo")


def launch(processes: int, folder) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += ["--master_port", "0", "--standalone", "-m", "tests.rl.two_processes", str(folder), *TERMS]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path.cwd())}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.fixture(scope="module")
def updates(tmp_path_factory):
    """What one process and two made of the same pages, by policy term."""
    folder = tmp_path_factory.mktemp("updates")
    for term in TERMS:
        (folder / term).mkdir()
    for processes in (1, 2):
        launch(processes, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("policy_term", TERMS)
def test_two_processes_give_the_rewards_and_the_update_of_one(updates, policy_term):
    folder = updates / policy_term
    one, two = (json.loads((folder / f"world{n}.json").read_text()) for n in (1, 2))
    assert one["logs"]["reward/raw"] > 0
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["logs"] == pytest.approx(one["logs"], abs=1e-5)
    weights = [torch.load(folder / f"world{n}.pt", weights_only=True) for n in (1, 2)]
    assert torch.allclose(*weights, atol=1e-5)
