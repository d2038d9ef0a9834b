from pathlib import Path

import pytest

from benchmarks import paper_tables
from benchmarks.tables.systems import ALIGNED, PAIRS, TABLES
from genrec_rl.config import parse_recipe
from genrec_rl.sft.trainer import PageSFTConfig
from recipes import sft

SPECS = {spec.name: spec for table in TABLES.values() for spec in table}


@pytest.mark.parametrize("data", ["beauty", "movielens"])
@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.kind == "policy"])
def test_every_policys_settings_are_the_recipes(data, name):
    config = Path(paper_tables.__file__).parent / "tables" / f"{data}.yaml"
    argv = ["--config", str(config), *SPECS[name].arguments]
    settings, _ = parse_recipe([sft.Settings, PageSFTConfig], sft.__file__, argv)
    given = dict(zip(SPECS[name].arguments[::2], SPECS[name].arguments[1::2], strict=True))
    assert settings.target == given["--target"]


def test_pairs_name_systems():
    assert {name for pair in PAIRS for name in pair} <= {*SPECS, *(spec.name for spec in ALIGNED)}


def test_names_are_told_apart():
    assert all(len({spec.name for spec in table}) == len(table) for table in TABLES.values())
