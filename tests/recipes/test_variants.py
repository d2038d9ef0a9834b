from pathlib import Path

import pytest

from genrec_rl.config import parse_recipe
from genrec_rl.rl.config import GRPOSRConfig
from recipes import grpo_sr, rspo

VARIANTS = Path(grpo_sr.__file__).parent / "variants"


@pytest.mark.parametrize("variant", sorted(path.stem for path in VARIANTS.glob("*.yaml") if path.stem[:4] != "qwen"))
def test_a_variant_is_one_that_its_recipe_takes_and_has_a_folder_of_its_own(variant):
    recipe = rspo if "dpo" in variant or "rspo" in variant else grpo_sr
    words = ["--config", str(VARIANTS / f"{variant}.yaml"), "--use_cpu", "true"]
    _, args = parse_recipe([grpo_sr.Settings, GRPOSRConfig], recipe.__file__, words)
    assert args.output_dir == f"runs/demo/{variant}"
    assert args.max_steps % args.eval_steps == args.max_steps % args.save_steps == 0
