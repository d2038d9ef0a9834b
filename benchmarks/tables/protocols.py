"""How the systems of a table are asked: which pages are held out, and which numbers are shown of the answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

ACCURACY = ("Recall@5", "NDCG@5", "Recall@10", "NDCG@10")
STRATA = ("Recall@10/unseen", "NDCG@10/unseen", "Recall@10/same_day", "NDCG@10/same_day", "Recall@10/new_day",
          "NDCG@10/new_day")  # fmt: skip

NARROW = ("Recall@10/20_beams", "NDCG@10/20_beams")
VOCABULARY = ("--softmax", "vocabulary")
"""A softmax over real items learns them faster, but its hallucination rate says nothing."""
PAGES = ("HR@10", "HR@50", "NDCG@10", "HaR@10", "HaR@50", "HaR-s", "HR@10/one", "HR@10/several")


@dataclass(frozen=True, slots=True)
class Protocol:
    """One column group of a table.

    Attributes:
        title: heading of its table.
        split: of recipes/prepare.py.
        max_history: newest items that a system may read.
        shown: metrics of the table, the first of which every system has.
        brief: those of them that README shows.
        paired: metrics of the paired differences.
        plotted: metric of the picture.
        prefix: of its metrics in the JSON.
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
    prefix: str = ""
    arguments: tuple[str, ...] = ()
    is_next_item: bool = False
    shuffles_ties: bool = False


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "loo": Protocol(
            "Leave-one-out", "leave_one_out", 20, (*ACCURACY, "HR@1", "HaR@10", "HaR-s", *NARROW, *STRATA),
            ("Recall@10", "NDCG@10", "Recall@10/unseen", "NDCG@10/unseen", "Recall@10/same_day", "Recall@10/new_day"),
            ("Recall@10", "NDCG@10"), "Recall@10", is_next_item=True,
        ),
        "pages": Protocol(
            "Pages (leave-last-page-out)", "leave_last_page_out", 50,
            ("HR@1", "Recall@10", *PAGES), ("HR@10", "HR@50", "NDCG@10", "HaR@10", "HaR-s"),
            PAGES, "HR@10", prefix="pages:", arguments=VOCABULARY,
        ),
        "ties": Protocol(
            "Leave-one-out, the order inside a day shuffled", "leave_one_out", 20, (*ACCURACY, *STRATA),
            ("Recall@10", "NDCG@10", "Recall@10/same_day", "Recall@10/new_day"),
            ("Recall@10", "NDCG@10"), "Recall@10", prefix="ties:", is_next_item=True, shuffles_ties=True,
        ),
    }
)  # fmt: skip
