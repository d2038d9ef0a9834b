"""How the systems of a table are asked: which pages are held out, and which numbers are shown of the answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

NARROW_BEAMS = 20
PUBLISHED = ("Recall@5", "NDCG@5", "Recall@10", "NDCG@10")
UNSEEN = ("Recall@10/unseen", "NDCG@10/unseen")
DAYS = ("Recall@10/same_day", "NDCG@10/same_day", "Recall@10/new_day", "NDCG@10/new_day")
NARROW = (f"Recall@10/{NARROW_BEAMS}_beams", f"NDCG@10/{NARROW_BEAMS}_beams")
PAGES = ("HR@10", "HR@50", "NDCG@10", "HaR@10", "HaR@50", "HaR-s", "HR@10/one", "HR@10/several")
VOCABULARY = ("--softmax", "vocabulary")
"""A softmax over real items learns them faster, but its hallucination rate says nothing."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """One column group of a table.

    Attributes:
        title: heading of its table.
        split: of recipes/prepare.py.
        max_history: newest items that a system may read.
        shown: metrics of the table.
        brief: those of them that benchmarks/README.md shows.
        paired: metrics of the paired differences.
        plotted: metric of the picture, which every system has.
        note: what the reader of the table must know.
        prefix: of its metrics in the JSON.
        has_published: papers give numbers under it.
        is_next_item: one item is asked for, and the day's earlier ones are the beginning of its page.
        arguments: of recipes/sft.py, over those of the data set's YAML and of the system.
        shuffles_ties: the order inside a second (a day, on Beauty) is random, not the file's.
    """

    title: str
    split: str
    max_history: int
    shown: tuple[str, ...]
    brief: tuple[str, ...]
    paired: tuple[str, ...]
    plotted: str
    note: str
    prefix: str = ""
    has_published: bool = False
    arguments: tuple[str, ...] = ()
    is_next_item: bool = False
    shuffles_ties: bool = False


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "loo": Protocol(
            "Leave-one-out", "leave_one_out", 20, (*PUBLISHED, "HR@1", "HaR@10", "HaR-s", *NARROW, *UNSEEN, *DAYS),
            ("Recall@10", "NDCG@10", "Recall@10/unseen", "NDCG@10/unseen", "Recall@10/same_day", "Recall@10/new_day"),
            ("Recall@10", "NDCG@10"), "Recall@10",
            "Each user's last item. HaR is that of policies whose softmax is over the vocabulary, not real items.",
            has_published=True, is_next_item=True,
        ),
        "pages": Protocol(
            "Pages (leave-last-page-out)", "leave_last_page_out", 50,
            ("HR@1", "Recall@10", *PAGES), ("HR@10", "HR@50", "NDCG@10", "HaR@10", "HaR-s"),
            PAGES, "HR@10",
            "Each user's last page with a positive. Policies have a softmax over the vocabulary, the paper's.",
            prefix="pages:", arguments=VOCABULARY,
        ),
        "ties": Protocol(
            "Leave-one-out, ties shuffled", "leave_one_out", 20, (*PUBLISHED, *UNSEEN, *DAYS),
            ("Recall@10", "NDCG@10", "Recall@10/same_day", "Recall@10/new_day"),
            ("Recall@10", "NDCG@10"), "Recall@10",
            "As above, but events of one user and second (on Beauty: day) stand in random order, in training too.",
            prefix="ties:", is_next_item=True, shuffles_ties=True,
        ),
    }
)  # fmt: skip
