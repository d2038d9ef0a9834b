import json

import numpy as np
import pytest

from benchmarks.tables.measure import Answers, Requests
from benchmarks.tables.protocols import PROTOCOLS
from benchmarks.tables.report import as_result, brief_tables, cell, number, tabulate, write_table
from benchmarks.tables.systems import TABLE_1

REQUESTS = Requests(
    user_ids=np.array(["a", "b"]),
    positives=[np.array([3]), np.array([5])],
    seen=[np.array([], int)] * 2,
    is_same_day=np.array([True, False]),
)
HIT = np.array([[3, *range(10, 59)], [5, *range(10, 59)]])
MISS = np.array([list(range(10, 60))] * 2)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0668, ".0668"), (1.0, "1.0000"), (-0.05, "-.0500"), (0.0, ".0000"), (30.0, "30.0000"), (0.99999, "1.0000")],
)
def test_numbers_have_four_places_and_no_leading_zero(value, text):
    assert number(value) == text


def test_counts_have_no_places():
    assert cell([3300.0, 3500.0]) == "3400 ± 141"
    assert cell([9.5]) == "9.5000"


def test_cell_is_mean_and_spread_of_the_seeds():
    assert cell([0.01, 0.03]) == ".0200 ± .0141"
    assert cell([0.01]) == ".0100"
    assert cell(None) == ""


def test_files_hold_every_seed_the_pairs_and_the_published_rows(tmp_path):
    file = tmp_path / "table1_beauty.json"
    answers = {
        "genrec": {0: Answers(HIT, free_PK=HIT), 1: Answers(MISS, free_PK=MISS)},
        "tiger": {0: Answers(MISS), 1: Answers(MISS)},
    }
    written = tabulate(dict.fromkeys(PROTOCOLS, answers), dict.fromkeys(PROTOCOLS, REQUESTS))
    write_table(written, TABLE_1, file)
    result = json.loads(file.read_text())
    assert result["systems"]["genrec"]["Recall@10"] == [1, 0]
    assert result["systems"]["genrec"]["pages:HR@10"] == [1, 0]
    assert result["paired"]["genrec-tiger"]["Recall@10"] == {"diff": 0.5, "lo": 0.5, "hi": 0.5}
    assert result["seeds"] == [0, 1]
    text = file.with_suffix(".md").read_text()
    assert "| *paper* | | .0454 | .0321 | .0648 | .0384 |" in text
    assert "- genrec - tiger: Recall@10 +0.5000 [+0.5000, +0.5000]" in text
    assert (tmp_path / "table1_beauty_loo.png").stat().st_size > 5000


def test_what_was_measured_elsewhere_stands_beside_and_is_paired():
    columns = {name: np.array([1.0, 0.0]) for name in ("Recall@10", "NDCG@10", "HR@10")}
    given = {"loo": {"sasrec_ce": {0: Answers(MISS)}}}
    result = tabulate(given, {"loo": REQUESTS}, measured={"loo": {"listwise_kl": {0: columns, 1: columns}}})
    assert result["systems"]["listwise_kl"]["Recall@10"] == [0.5, 0.5]
    assert result["paired"]["listwise_kl-sasrec_ce"]["NDCG@10"]["diff"] == 0.5
    assert "Recall@5" not in result["systems"]["listwise_kl"]


def test_command_is_the_one_that_makes_the_cells(monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmarks/x.py", "--table", "1", "--report", "true"])
    assert as_result({}, {}, seeds=[0])["command"] == "python benchmarks/x.py --table 1"


def test_brief_table_has_fewer_columns_and_names_the_file(tmp_path):
    result = tabulate({"loo": {"tiger": {0: Answers(HIT)}}}, {"loo": REQUESTS})
    text = brief_tables(result, TABLE_1, tmp_path / "table1_beauty.json")
    assert "| | seeds | Recall@10 | NDCG@10 |" in text
    assert "| **tiger**, TIGER | 1 | 1.0000 | 1.0000 |" in text
    assert "| *paper* | | .0648 | .0384 |" in text
    assert text.endswith("table1_beauty.md`.")
