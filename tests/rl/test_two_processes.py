import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def launch(processes: int, folder, policy_term: str) -> dict:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += ["--master_port", "0", "--standalone", "-m", "tests.rl.two_processes", str(folder), policy_term]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path.cwd())}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((folder / f"world{processes}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("policy_term", ["grpo", "listwise_kl", "rspo"])
def test_two_processes_give_the_rewards_and_the_update_of_one(tmp_path, policy_term):
    one, two = (launch(n, tmp_path, policy_term) for n in (1, 2))
    assert one["logs"]["reward/raw"] > 0
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["logs"] == pytest.approx(one["logs"], abs=1e-5)
    weights = [torch.load(tmp_path / f"world{n}.pt", weights_only=True) for n in (1, 2)]
    assert torch.allclose(*weights, atol=1e-5)
