import re
from pathlib import Path

import pytest

from genrec_rl.config import parse_recipe
from genrec_rl.rl.config import GRPOSRConfig
from recipes import grpo_sr

VARIANTS = Path(grpo_sr.__file__).parent / "variants"


@pytest.mark.parametrize("variant", sorted(path.stem for path in VARIANTS.glob("*.yaml") if path.stem[:4] != "qwen"))
def test_a_variant_is_one_that_the_recipe_it_names_takes_and_has_a_folder_of_its_own(variant):
    file = VARIANTS / f"{variant}.yaml"
    recipe, config = re.search(r"accelerate launch (\S+) --config (\S+)", file.read_text()).groups()
    assert Path(config).name == file.name
    words = ["--config", str(file), "--use_cpu", "true"]
    _, args = parse_recipe([grpo_sr.Settings, GRPOSRConfig], VARIANTS.parents[1] / recipe, words)
    assert args.output_dir == f"runs/demo/{variant}"
    assert args.max_steps % args.eval_steps == args.max_steps % args.save_steps == 0
