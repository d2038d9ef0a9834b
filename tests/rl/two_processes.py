"""One update by each policy term on hand-made pages, by 1 or 2 processes. Writes what rank 0 saw."""

import json
import os
import sys
from pathlib import Path

import torch

from genrec_rl.rewards.gates import SidPrefixGate
from tests.fixtures import make_catalog, make_example, make_policy
from tests.rl.test_trainer import G, make_trainer


def update(folder: Path, policy_term: str) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    catalog = make_catalog()
    # pages of 0, 1, 2 and 10 positives: ranks see different numbers, and the longest page must be sampled
    positives = [[], [3], [4, 7], list(range(10)), [1], [5, 6], [], [11]]
    examples = [make_example([i, 11 - i], page, exposed=[i]) for i, page in enumerate(positives)]
    policy = make_policy(catalog)
    gate = SidPrefixGate(catalog, reference="history")
    trainer = make_trainer(
        policy, catalog, examples, folder, gate=gate, per_device_train_batch_size=8 * G // world,
        constrained_rollouts=True, policy_term=policy_term,
    )  # fmt: skip
    assert trainer.is_fused, trainer.why_not_fused
    trainer.train()
    row = next(row for row in trainer.state.log_history if "reward/raw" in row)
    weights = torch.cat([w.detach().flatten() for w in policy.model.parameters()])
    if trainer.accelerator.num_processes > 1:
        everyone = trainer.accelerator.gather(weights[None])
        assert everyone[0].equal(everyone[1]), "the two ranks ended with different weights"
    if trainer.accelerator.is_main_process:
        found = {name: value for name, value in row.items() if name.startswith(("reward", "rollout", "nll"))}
        record = {"processes": trainer.accelerator.num_processes, "logs": found}
        (folder / f"world{world}.json").write_text(json.dumps(record))
        torch.save(weights, folder / f"world{world}.pt")


if __name__ == "__main__":
    for term in sys.argv[2:]:
        update(Path(sys.argv[1]) / term, term)
