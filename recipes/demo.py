"""The whole way on MovieLens-100K: data, semantic ids, SFT, reward model, GRPO, GRPO-SR, evaluation.

    make demo

Reads   MovieLens-100K, out of the recbole wheel.
Writes  runs/demo/{data,sids,sft,reward,grpo,grpo_sr,eval}; a finished stage whose command and settings have not
        changed is reused.
Watch   the table at the end: SFT, GRPO and GRPO-SR on the same users, beside popularity and co-occurrence.
"""

import hashlib
import importlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from genrec_rl.tracking import STAGE_FILE, console, run_recipe

RECIPES = Path(__file__).parent
RUNS = Path("runs/demo")
KEY_FILE = "demo_key"


def digest_sources() -> bytes:
    """Digest of all code: results of older code are not reused."""
    digest = hashlib.sha256()
    for folder in ("genrec_rl", "reward_models", "recipes"):
        for path in sorted((RECIPES.parent / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.digest()


SOURCES = digest_sources()


@dataclass(frozen=True, slots=True)
class Stage:
    """One command of the demo; ``needs`` are the folders it reads."""

    name: str
    recipe: str
    needs: tuple[str, ...] = ()
    variant: str | None = None

    @property
    def argv(self) -> list[str]:
        """Command-line words after the recipe; the recipes' own YAMLs hold the demo's settings."""
        return ["--config", str(RECIPES / "variants" / self.variant)] if self.variant else []

    @property
    def folder(self) -> Path:
        """What it writes."""
        return RUNS / self.name

    def key(self) -> str:
        """Digest of the code, the recipe's settings and the stages it reads."""
        facts = [SOURCES, (RECIPES / f"{self.recipe}.yaml").read_bytes()]
        if self.variant:
            facts.append((RECIPES / "variants" / self.variant).read_bytes())
        facts += [(RUNS / need / KEY_FILE).read_bytes() for need in self.needs]
        return hashlib.sha256(b"\0".join(facts)).hexdigest()

    def is_done(self) -> bool:
        """Whether the folder holds this stage, finished, with these settings."""
        key = self.folder / KEY_FILE
        return (self.folder / STAGE_FILE).is_file() and key.is_file() and key.read_text() == self.signature()

    def signature(self) -> str:
        """Digest of what was asked and of the record it left: another run into this folder changes it."""
        return self.key() + hashlib.sha256((self.folder / STAGE_FILE).read_bytes()).hexdigest()


STAGES = (
    Stage("data", "prepare"),
    Stage("sids", "build_sids", needs=("data",)),
    Stage("sft", "sft", needs=("data", "sids")),
    Stage("reward", "train_reward", needs=("data", "sids")),
    Stage("grpo", "grpo_sr", needs=("sft", "reward"), variant="grpo.yaml"),
    Stage("grpo_sr", "grpo_sr", needs=("sft", "reward")),
    Stage("eval", "evaluate", needs=("sft", "grpo", "grpo_sr")),
)


def main() -> None:
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    started = time.time()
    for number, stage in enumerate(STAGES, 1):
        command = " ".join([f"recipes/{stage.recipe}.py", *stage.argv])
        if stage.is_done():
            console.print(f"[bold]{number}/{len(STAGES)} {stage.name}[/]  reused: {stage.folder} is up to date")
            continue
        console.print(f"\n[bold]{number}/{len(STAGES)} {stage.name}[/]  {command}")
        begun = time.time()
        importlib.import_module(stage.recipe).main(stage.argv)
        (stage.folder / KEY_FILE).write_text(stage.signature())
        console.print(f"[dim]{stage.name} took {time.time() - begun:.0f} s[/]")
    show_results(seconds=time.time() - started)


def show_results(*, seconds: float) -> None:
    console.print(f"\nThe table again: {RUNS}/eval/table.md")
    console.print(f"Plots:           {RUNS}/eval/*.png, {RUNS}/sids/codebooks.png, {RUNS}/reward/reliability.png")
    console.print(f"Every number:    {RUNS}/*/metrics.jsonl; sampled rollouts: {RUNS}/grpo_sr/rollouts.jsonl")
    console.print(f"W&B, offline:    {RUNS}/*/wandb  (look: `wandb leet {RUNS}/grpo_sr/wandb/latest-run`; "
                  f"upload: `wandb sync {RUNS}/grpo_sr/wandb/offline-run-*`)")  # fmt: skip
    console.print("Next:            accelerate launch recipes/grpo_sr.py --nll_coef 0.05 --output_dir runs/mine")
    console.print(f"demo took {seconds:.0f} s")


if __name__ == "__main__":
    run_recipe(main)
