import io
import json

from rich.console import Console

from genrec_rl.rewards.gates import GateReport
from reward_models.report_tables import plot_reliability, print_report, write_report
from tests.reward_models.test_report import POPULARITY, Orders, pages, report

GATES = {"embedding": GateReport(tau=0.25, positives_pass=0.95, random_pass=0.5, invalid_pass=0.0, n_positives=30)}


def printed(found) -> str:
    out = io.StringIO()
    print_report(Console(file=out, width=140), found, GATES, seconds=1.0)
    return out.getvalue()


def test_tables_hold_ranking_calibration_bands_and_gates():
    text = printed(report(pages()))
    for part in (
        "30 pages of 30 held-out users",
        "exposed",
        "1.000 [1.000, 1.000]",
        "95.0%",
        "50.0%",
        "By popularity",
    ):
        assert part in text
    assert "positives and uniform" in text
    assert "orders" not in text.partition("Calibration")[2].partition("By popularity")[0]


def test_orders_have_a_line_where_they_are_predicted():
    assert "the same, orders" in printed(report(pages(), Orders(POPULARITY)))


def test_the_diagram_is_a_picture(tmp_path):
    plot_reliability(report(pages()), tmp_path / "reliability.png", name="SIM")
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_written_is_strict_json(tmp_path):
    model = Orders(POPULARITY)
    write_report(Console(file=io.StringIO()), model, report(pages(), model), GATES, tmp_path, seconds=1.0)
    written = json.loads((tmp_path / "reward.json").read_text(), parse_constant=lambda name: 1 / 0)
    assert written["gates"]["embedding"]["invalid_pass"] == 0
    assert written["report"]["slices"]["exposed"]["tie_share"] == 0
