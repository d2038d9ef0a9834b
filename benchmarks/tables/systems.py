"""The systems of Tables 1 and 2, and what makes each: arguments of a recipe, or a baseline."""

from dataclasses import dataclass, field
from typing import Literal

from benchmarks.tables.protocols import PROTOCOLS, VOCABULARY

Kind = Literal["counter", "neural", "policy", "reranked", "aligned"]


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """One row of the table.

    ``arguments`` are recipes/sft.py's, beside those of the data set's YAML, for a policy, and recipes/train_xgb.py's
    for a re-ranked row, which orders the beams of the policy row ``of``; an aligned row is an arm of
    benchmarks/rl_gain.py that started from it. ``protocols`` are those it is asked under.
    ``published`` is the row of a paper on Amazon Beauty, leave-one-out (EVALUATION: Recall@5, NDCG@5, Recall@10,
    NDCG@10), to stand beside.
    """

    name: str
    kind: Kind
    title: str
    arguments: tuple[str, ...] = ()
    continues_page: bool = False
    of: str = ""
    protocols: tuple[str, ...] = tuple(PROTOCOLS)
    published: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)


NO_MERGER = ("--merge", "false", "--item_embedding", "false")
"""An item's own vector stands beside its merged one."""

CLOSED = ("--page_items", "merged")
"""Each item of a page closes as an item of a history does: the next one then starts from the same state."""

WIDE = ("--hidden_size", "256", "--intermediate_size", "768")
"""Our best; the others are narrower because there are so many of them."""

WITH_VALID = (
    "--learn_valid", "true", "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false",
)  # fmt: skip
"""As the counters that count them: the last weights are taken, since validation can choose none."""

TREES = (
    "--objective", "rank:ndcg", "--max_requests", "16000", "--learning_rate", "0.05", "--n_trees", "300",
    "--patience", "300",
)  # fmt: skip
"""They learn to order the policy's own proposals, of training requests alone."""

RERANK_WEIGHT = 3.0
"""Of the trees' log-odds beside the policy's log-probability; chosen on validation (LOG.md)."""

TABLE_1 = (
    SystemSpec("popularity", "counter", "popularity"),
    SystemSpec("cooccurrence", "counter", "forward co-occurrence, training counts"),
    SystemSpec("cooccurrence_with_valid", "counter", "forward co-occurrence, training and validation counts"),
    SystemSpec("cooccurrence_symmetric", "counter", "symmetric co-occurrence, training counts"),
    SystemSpec("sasrec_bce", "neural", "SASRec, binary cross-entropy",
               published={"TIGER paper": (.0387, .0249, .0605, .0318), "cornac": (.0508, .0348, .0740, .0423)}),
    SystemSpec("sasrec_ce", "neural", "SASRec, full cross-entropy"),
    SystemSpec("bert4rec", "neural", "BERT4Rec", published={"TIGER paper": (.0203, .0124, .0347, .0170)}),
    SystemSpec("hstu", "neural", "HSTU"),
    SystemSpec("tiger", "neural", "TIGER",
               published={"paper": (.0454, .0321, .0648, .0384), "phonism/genrec": (.0465, .0297, .0721, .0378)}),
    SystemSpec("lc_rec", "policy", "LC-Rec as the paper builds it: vanilla NTP, no merger",
               ("--target", "item", *NO_MERGER),
               published={"phonism/genrec, 1.7B": (.0525, .0352, .0791, .0438)}),
    SystemSpec("genrec_item", "policy", "vanilla NTP, merged", ("--target", "item")),
    SystemSpec("genrec_running", "policy", "running target, merged", ("--target", "running")),
    SystemSpec("genrec_running_with_valid", "policy", "running target, merged; learns validation items too",
               ("--target", "running", *WITH_VALID)),
    SystemSpec("genrec_no_merger", "policy", "page-wise, no merger",
               ("--target", "page", *NO_MERGER), continues_page=True),
    SystemSpec("genrec_codes", "policy", "page-wise, merged, prompts of codes alone",
               ("--target", "page", "--item_embedding", "false"), continues_page=True),
    SystemSpec("genrec_vocabulary", "policy", "page-wise, merged, softmax over the vocabulary",
               ("--target", "page", *VOCABULARY), continues_page=True, protocols=("loo",)),
    SystemSpec("genrec", "policy", "page-wise, merged", ("--target", "page"), continues_page=True),
    SystemSpec("genrec_closed", "policy", "page-wise, merged; a page's finished items read as merged items",
               ("--target", "page", *CLOSED), continues_page=True),
    SystemSpec("genrec_mixed", "policy", "page-wise and running, merged, asked as running",
               ("--target", "page+running")),
    SystemSpec("genrec_wide", "policy", "as genrec_closed, 256 wide",
               ("--target", "page", *CLOSED, *WIDE), continues_page=True),
    SystemSpec("genrec_running_wide", "policy", "running target, merged, 256 wide", ("--target", "running", *WIDE)),
    SystemSpec("genrec_reranked", "reranked", "two stages: genrec_wide, its beams re-ranked by trees",
               TREES, continues_page=True, of="genrec_wide", protocols=("loo",)),
    SystemSpec("genrec_running_days", "policy", "running target, merged; reads the request's day",
               ("--target", "running", "--separator", "day")),
)  # fmt: skip

ALIGNED = tuple(
    SystemSpec(name, "aligned", f"{title}, from genrec_wide; trees reward", of="genrec_wide", protocols=("loo",))
    for name, title in (("grpo_sr", "GRPO-SR"), ("listwise_kl", "listwise KL"))
)
"""Rows that benchmarks/rl_gain.py makes; the table shows those that are done."""


def sized(width: int, layers: int) -> SystemSpec:
    """Return the page-wise policy of a size, its MLP three times as wide."""
    size = ("--hidden_size", str(width), "--num_layers", str(layers), "--intermediate_size", str(3 * width))
    title = f"page-wise, merged, {layers} layers of {width}"
    return SystemSpec(f"genrec_{width}x{layers}", "policy", title, ("--target", "page", *size), continues_page=True)


TABLE_2 = (sized(32, 1), sized(64, 2), sized(128, 3), sized(256, 4))
TABLES = {1: TABLE_1, 2: TABLE_2}

TARGETS = ("genrec_item", "genrec_running", "genrec", "genrec_closed", "genrec_mixed")
"""Policies that differ in nothing but what they are taught: their validation losses may be compared (Figure 2a)."""

PAIRS = (
    ("genrec", "genrec_item"),
    ("genrec", "genrec_running"),
    ("genrec_closed", "genrec"),
    ("genrec_closed", "genrec_item"),
    ("genrec_closed", "genrec_running"),
    ("genrec_closed", "genrec_no_merger"),
    ("genrec_closed", "lc_rec"),
    ("genrec_closed", "cooccurrence"),
    ("genrec_mixed", "genrec_running"),
    ("genrec_codes", "genrec_no_merger"),
    ("genrec", "genrec_no_merger"),
    ("genrec_running", "genrec_no_merger"),
    ("genrec_item", "lc_rec"),
    ("genrec_running", "cooccurrence"),
    ("genrec", "genrec_codes"),
    ("genrec", "genrec_vocabulary"),
    ("genrec_codes", "lc_rec"),
    ("genrec_no_merger", "lc_rec"),
    ("genrec_codes", "genrec_running"),
    ("genrec_wide", "genrec_running"),
    ("genrec_running_days", "genrec_running"),
    ("genrec_running", "genrec_item"),
    ("genrec_running_wide", "genrec_running"),
    ("genrec_wide", "genrec_running_wide"),
    ("genrec_running_wide", "cooccurrence"),
    ("genrec_reranked", "genrec_wide"),
    ("genrec_reranked", "cooccurrence"),
    ("genrec_reranked", "cooccurrence_with_valid"),
    ("genrec_reranked", "sasrec_ce"),
    ("genrec_wide", "cooccurrence"),
    ("genrec_wide", "sasrec_ce"),
    ("genrec_running_wide", "sasrec_ce"),
    ("grpo_sr", "genrec_wide"),
    ("listwise_kl", "genrec_wide"),
    ("listwise_kl", "cooccurrence"),
    ("listwise_kl", "sasrec_ce"),
    ("genrec_running_with_valid", "genrec_running"),
    ("genrec_running_with_valid", "cooccurrence_with_valid"),
    ("genrec", "cooccurrence"),
    ("genrec", "sasrec_ce"),
    ("genrec", "tiger"),
    ("genrec_64x2", "genrec_32x1"),
    ("genrec_128x3", "genrec_64x2"),
    ("genrec_256x4", "genrec_128x3"),
)
