"""The rows of GR4AD's ablation, and the policies behind them."""

from dataclasses import dataclass
from types import MappingProxyType

SFT = ("--target", "running", "--softmax", "vocabulary", "--num_layers", "3")
WEIGHTS = ("--value_user_weight", "1", "--action_weights", "2", "1", "0.5")
TOKENS = ("--n_value_buckets", "16")
LAZY = ("--lazy_layers", "2")


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A policy: recipes/sft.py with these arguments over the data set's YAML, on plain SIDs or UA-SIDs."""

    arguments: tuple[str, ...]
    sids: str = "ua"
    script: str = "recipes/sft.py"


@dataclass(frozen=True, slots=True)
class Aligned(PolicySpec):
    """A policy aligned from ``start`` by the reward model."""

    start: str = "vsl"


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a policy, asked with as many beams on every level or with twice as many on each next one.

    ``paper`` holds its differences of revenue and QPS, from a note on the paper.
    """

    name: str
    title: str
    policy: str
    grows: bool = False
    paper: str = ""


POLICIES = MappingProxyType(
    {
        "base": PolicySpec(SFT, sids="plain"),
        "ua_sid": PolicySpec(SFT),
        "vsl": PolicySpec((*SFT, *WEIGHTS, *TOKENS)),
        "vsl_dpo": Aligned(("--policy_term", "dpo"), script="recipes/rspo.py"),
        "vsl_grpo": Aligned(("--anchor_positives", "false"), script="recipes/grpo_sr.py"),
        "vsl_rspo": Aligned((), script="recipes/rspo.py"),
        "unified": Aligned(("--unified", "true"), script="recipes/rspo.py"),
        "lazy": PolicySpec((*SFT, *WEIGHTS, *LAZY)),
        "lazy_unified": Aligned(("--unified", "true"), script="recipes/rspo.py", start="lazy"),
    }
)
"""A LazyAR policy writes no value tokens: its answers are weighed by value alone."""

ROWS = (
    Row("base", "running target, plain SIDs", "base", paper="+1.68 %, -"),
    Row("ua_sid", "+ UA-SID", "ua_sid", paper="+1.92 %, 0 %"),
    Row("vsl", "+ VSL", "vsl", paper="+2.80 %, -25 %"),
    Row("vsl_dpo", "+ VSL + DPO", "vsl_dpo", paper="+3.16 %"),
    Row("vsl_grpo", "+ VSL + GRPO", "vsl_grpo", paper="+3.21 %"),
    Row("vsl_rspo", "+ VSL + RSPO", "vsl_rspo", paper="+3.86 %, -25 %"),
    Row("unified", "+ unified VSL and RSPO", "unified", paper="+4.01 %, -25 %"),
    Row("dynamic", "+ growing beam widths", "unified", grows=True, paper="+4.32 %, +20 %"),
    Row("lazy_ar", "+ LazyAR", "lazy_unified", grows=True, paper="+4.28 %, +117 %"),
)

PAIRS = (
    ("ua_sid", "base"),
    ("vsl", "ua_sid"),
    ("vsl_dpo", "vsl"),
    ("vsl_grpo", "vsl"),
    ("vsl_rspo", "vsl"),
    ("vsl_rspo", "vsl_dpo"),
    ("vsl_rspo", "vsl_grpo"),
    ("unified", "vsl_rspo"),
    ("dynamic", "unified"),
    ("lazy_ar", "dynamic"),
    ("lazy_ar", "base"),
)
SHOWN = ("NDCG@10", "value@10", "value_head@10", "HaR@10")
