from dataclasses import dataclass, field
from typing import Literal, Protocol

import pytest

from genrec_rl.config import load_component, nearest, parse_recipe
from genrec_rl.errors import ConfigError
from genrec_rl.rewards.protocol import Gate, RewardModel


@dataclass
class Settings:
    output_dir: str = field(default="runs/x")
    learning_rate: float = field(default=1e-3)
    steps: int = field(default=10)
    merge: bool = field(default=True)
    seed: int | None = field(default=None)
    search: Literal["soft", "hard"] = field(default="soft")
    sizes: list[int] = field(default_factory=lambda: [1])


@dataclass
class Extra:
    gate: dict | str | None = field(default=None)


@pytest.fixture
def parse(tmp_path):
    """Parse words for a recipe whose YAML holds the given text."""

    def parse(*words, yaml=""):
        (tmp_path / "recipe.yaml").write_text(yaml)
        return parse_recipe([Settings, Extra], tmp_path / "recipe.py", list(words))

    return parse


def test_without_anything_the_defaults_hold(parse):
    assert parse() == (Settings(), Extra())


def test_command_line_beats_config_beats_recipe_yaml_beats_defaults(parse, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("steps: 3\nlearning_rate: 0.3\n")
    recipe = "steps: 2\nlearning_rate: 0.2\noutput_dir: two\n"
    settings, _ = parse("--config", str(mine), "--learning_rate", "0.4", yaml=recipe)
    assert (settings.output_dir, settings.steps, settings.learning_rate) == ("two", 3, 0.4)
    assert settings.merge is True
    settings, _ = parse(f"--config={mine}", yaml=recipe)
    assert settings.steps == 3


def test_a_float_that_pyyaml_reads_as_a_string_is_a_float(parse):
    assert parse(yaml="learning_rate: 1e-6")[0].learning_rate == 1e-6


def test_null_and_lists_and_blocks_come_through(parse):
    settings, extra = parse(yaml="seed: null\nsizes: [4, 8]\ngate: {class_path: a.B, init_args: {tau: 0.1}}")
    assert (settings.seed, settings.sizes) == (None, [4, 8])
    assert extra.gate == {"class_path": "a.B", "init_args": {"tau": 0.1}}


def test_a_recipe_can_be_parsed_twice_in_one_process(parse):
    block = "gate: {class_path: a.B}\nseed: 3"
    assert parse(yaml=block) == parse(yaml=block)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("learnig_rate: 0.1", "unknown key 'learnig_rate'; did you mean 'learning_rate'"),
        ("steps: ten", "steps: 'ten' is a str, expected int"),
        ("steps: true", "steps: True is a bool, expected int"),
        ("steps: 1.5", "steps: 1.5 is a float, expected int"),
        ("merge: 1", "merge: 1 is a int, expected bool"),
        ("learning_rate: fast", "learning_rate: 'fast' is a str, expected float"),
        ("sizes: 4", "sizes: 4 is a int, expected list"),
        ("- steps", "holds a list"),
        ("steps: [", "not valid YAML"),
        ("steps: !!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_wrong_yaml_is_refused_by_key_and_value(parse, yaml, message):
    with pytest.raises(ConfigError, match=r"recipe\.yaml") as refusal:
        parse(yaml=yaml)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "3"], "unknown option '--step'; did you mean '--steps'"),
        (["--step=3"], "unknown option '--step'"),
        (["--search", "softt"], "argument --search"),
        (["--steps", "three"], "argument --steps: invalid int value: 'three'"),
        (["--search", "medium"], "argument --search: invalid choice: 'medium'"),
        (["--config"], "--config needs a file"),
        (["--config", "nowhere.yaml"], r"nowhere.yaml: cannot be read"),
    ],
)
def test_wrong_words_are_refused(parse, words, message):
    with pytest.raises(ConfigError, match=message):
        parse(*words)


def test_nearest_is_silent_when_nothing_is_near():
    assert nearest("zzz", ["tau", "reference"]) == ""


class Paints(Protocol):
    def paint(self) -> str: ...


class Brush(Paints):
    """A class with no constructor of its own, whose signature is its Protocol's."""

    def paint(self):
        return "plain"


class Pen(Paints):
    def __init__(self, width: float, color: str = "black", *, catalog: object = None):
        self.width, self.color, self.catalog = width, color, catalog

    def paint(self):
        return self.color

    @classmethod
    def from_pretrained(cls, path: str):
        return cls(1.0, color=path)


def load(name, expected=Paints, factory=None, provided=None, **init_args):
    block = {"class_path": f"{__name__}.{name}", "init_args": init_args}
    trusted = [__name__.split(".")[0]]
    return load_component(
        block, expected=expected, key="tool", factory=factory, provided=provided, trusted_packages=trusted
    )


def test_a_block_builds_its_class_with_its_arguments():
    pen = load("Pen", width=2, color="red")
    assert (pen.width, pen.color) == (2.0, "red")


def test_provided_objects_go_where_a_parameter_has_their_name():
    assert load("Pen", width=2, provided={"catalog": "mine", "unused": 1}).catalog == "mine"
    assert load("Brush", provided={"catalog": "mine"}).paint() == "plain"


def test_a_factory_takes_the_constructors_place():
    assert load("Pen", factory="from_pretrained", path="blue").color == "blue"


@pytest.mark.parametrize(
    ("name", "init_args", "message"),
    [
        ("Pen", {"widht": 2}, "has no argument 'widht'; did you mean 'width'"),
        ("Pen", {"width": "broad"}, "tool.init_args.width: 'broad' is a str, expected float"),
        ("Pen", {}, "needs init_args width"),
        ("Brush", {"width": 2}, "has no argument 'width'"),
        ("Pne", {}, "no 'Pne' in .*; did you mean 'Pen'"),
        ("pytest", {}, "is not a Paints"),
    ],
)
def test_wrong_blocks_are_refused_before_anything_is_built(name, init_args, message):
    with pytest.raises(ConfigError, match=message):
        load(name, **init_args)


def test_a_class_that_lacks_a_member_is_refused_by_member():
    with pytest.raises(ConfigError, match="is not a Gate; it lacks similarity, tau"):
        load("Brush", expected=Gate)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"class_path": "subprocess.Popen"}, r"outside the trusted packages.*trusted_packages: \[subprocess\]"),
        ({"class_path": "Popen"}, "outside the trusted packages"),
        ({"class_path": "reward_models.nothing.Model"}, "cannot be imported"),
        ({"class_path": "reward_models.scripted.Constant", "args": {}}, "unknown key 'args'"),
        ({"class_path": "reward_models.scripted.Constant", "init_args": ["x"]}, "is no mapping"),
        ({"class": "reward_models.scripted.Constant"}, "expected {class_path"),
        ("reward_models.scripted.Constant", "expected {class_path"),
        (None, "expected {class_path"),
    ],
)
def test_a_foreign_or_misshapen_block_is_refused(block, message):
    with pytest.raises(ConfigError, match=message):
        load_component(block, expected=RewardModel, key="reward_model")


def test_a_yaml_value_outside_its_choices_is_refused(parse):
    with pytest.raises(ConfigError, match="search: 'medium' is not one of soft, hard"):
        parse(yaml="search: medium")
