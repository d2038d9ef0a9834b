"""What the report says follows from the intervals, in every form it takes."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from genrec_rl.evaluation.evaluate import Predictions
from genrec_rl.evaluation.report import Samples, as_row, findings, markdown, print_report, verdict, write_report
from genrec_rl.types import EvalReport, Interval

ABOVE, BELOW, TIED = Interval(0.02, 0.01, 0.03), Interval(-0.02, -0.03, -0.01), Interval(0.001, -0.01, 0.012)


def make_report(sft_against_popularity=ABOVE, rl=TIED, distinct=(100, 90), **protocol):
    def metrics(distinct_items):
        coverage = {name: Interval(0.4, math.nan, math.nan) for name in ("coverage@10",)}
        first = {"distinct@1": Interval(distinct_items, math.nan, math.nan)}
        return {"HR@10": Interval(0.2104, 0.198, 0.223), "HaR@10": Interval(0.0, 0.0, 0.0)} | coverage | first

    def policy(distinct_items):
        return {"constrained": metrics(distinct_items), "unconstrained": metrics(distinct_items)}

    return EvalReport(
        protocol={"requests": 941, "bootstrap_draws": 1000} | protocol,
        systems={
            "popularity": {"constrained": metrics(1)},
            "sft": policy(distinct[0]),
            "grpo_sr": policy(distinct[1]),
        },
        paired={
            "sft-popularity": {"constrained": {"HR@10": sft_against_popularity}},
            "grpo_sr-popularity": {"constrained": {"HR@10": ABOVE}},
            "grpo_sr-sft": {"constrained": {"HR@10": rl}, "unconstrained": {"HR@10": TIED, "HaR@10": BELOW}},
        },
    )


@pytest.mark.parametrize(
    ("difference", "word"),
    [(ABOVE, "higher"), (BELOW, "lower"), (TIED, "not separated"), (Interval(0.1, 0.0, 0.2), "not separated")],
)
def test_verdict_asks_whether_zero_is_left_out(difference, word):
    assert verdict(difference) == word


def test_findings_name_who_beats_popularity():
    lines = findings(make_report(sft_against_popularity=TIED))
    assert "Against popularity on HR@10, constrained: above it: grpo_sr; not separated from it: sft." in lines


def test_findings_say_that_rl_is_below():
    assert "grpo_sr against sft, constrained: below on HR@10 (-.0200, -.0300 to -.0100)." in findings(
        make_report(rl=BELOW)
    )


def test_findings_claim_nothing_for_a_tie():
    lines = findings(make_report(rl=TIED))
    assert "grpo_sr against sft, constrained: not separated on HR@10." in lines
    assert (
        "grpo_sr against sft, unconstrained: below on HaR@10 (-.0200, -.0300 to -.0100); not separated on HR@10."
        in lines
    )


def test_difference_is_read_from_either_order():
    report = make_report(rl=BELOW)
    report.paired["sft-grpo_sr"] = {"constrained": {"HR@10": ABOVE}}
    del report.paired["grpo_sr-sft"]
    assert "grpo_sr against sft, constrained: below on HR@10 (-.0200, -.0300 to -.0100)." in findings(report)


def test_first_policy_is_the_reference_where_none_is_called_sft():
    report = make_report(rl=ABOVE)
    systems = {"base": report.systems["sft"], "tuned": report.systems["grpo_sr"]}
    paired = {"tuned-base": report.paired["grpo_sr-sft"]}
    assert findings(EvalReport(report.protocol, systems, paired))[0].startswith(
        "tuned against base, constrained: above"
    )


@pytest.mark.parametrize(("after", "warned"), [(49, True), (50, False)])
def test_findings_warn_when_lists_narrow_by_half(after, warned):
    said = [line for line in findings(make_report(distinct=(100, after))) if "narrowed" in line]
    assert bool(said) == warned


@pytest.mark.parametrize(
    ("seen", "again", "excluded", "said"),
    [
        (0.31, 0.0, "false", "the user has taken: sft 31%; of the positives 0.0% are. Set exclude_seen: true."),
        (0.04, 0.0, "false", None),
        (0.31, 0.2, "false", None),
        (0.0, 0.2, "false", None),
        (0.0, 0.2, "true", "20.0% of positives were taken before, and exclude_seen hides them"),
        (0.0, 0.0, "true", None),
    ],
)
def test_findings_say_when_places_or_positives_are_lost_to_what_was_taken(seen, again, excluded, said):
    systems = {"sft": {"constrained": {"seen@10": Interval(seen, 0, 1)}}}
    protocol = {"positives_seen": again, "exclude_seen": excluded}
    lines = [line for line in findings(EvalReport(protocol, systems)) if "taken" in line]
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]


def test_smoke_test_is_called_one():
    assert "Smoke test only: at most 64 requests were scored." in findings(make_report(max_requests=64))
    assert not any("Smoke" in line for line in findings(make_report()))


def test_json_has_the_documented_shape(tmp_path):
    write_report(make_report(), tmp_path)
    content = json.loads((tmp_path / "eval.json").read_text())
    assert content["protocol"]["requests"] == 941
    assert content["systems"]["sft"]["constrained"]["HR@10"] == {"mean": 0.2104, "low": 0.198, "high": 0.223}
    assert content["systems"]["sft"]["constrained"]["coverage@10"] == {"mean": 0.4, "low": None, "high": None}
    assert content["paired"]["grpo_sr-sft"]["unconstrained"]["HaR@10"] == {"diff": -0.02, "low": -0.03, "high": -0.01}


def test_json_is_strict_where_nothing_was_valid(tmp_path):
    report = EvalReport({}, {"x": {"unconstrained": {"gini@10": Interval(math.nan, math.nan, math.nan)}}})
    write_report(report, tmp_path)
    content = json.loads((tmp_path / "eval.json").read_text(), parse_constant=pytest.fail)
    assert content["systems"]["x"]["unconstrained"]["gini@10"]["mean"] is None


def test_markdown_marks_differences_in_words():
    text = markdown(make_report(rl=ABOVE), samples="user 7")
    assert "| sft | .2104 [.1980, .2230] |" in text
    assert "| grpo_sr - sft | +.0200 [.0100, .0300] **higher** |" in text
    assert "| grpo_sr - sft | +.0010 [-.0100, .0120] | -.0200 [-.0300, -.0100] **lower** |" in text
    assert "user 7" in text


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_tables_lose_no_number(width):
    names = ["HR@1", "HR@10", "HR@50", "NDCG@10", "NDCG@50", "HaR@10", "R@1", "R@10", "coverage@10"]
    nine = dict.fromkeys(names, Interval(-0.2104, -0.22, -0.2))
    report = EvalReport(
        {"bootstrap_draws": 9}, {"cooccurrence": {"constrained": nine}}, {"grpo_sr-sft": {"constrained": nine}}
    )
    console = Console(width=width, record=True, file=io.StringIO())
    print_report(report, console)
    text = console.export_text()
    assert "…" not in text
    assert text.count("-.2104") == 18
    assert text.count("±.010") == 18


def test_terminal_shows_no_difference_from_the_bars():
    console = Console(width=100, record=True, file=io.StringIO())
    print_report(make_report(), console)
    text = console.export_text()
    assert "- sft" in text
    assert "- popularity" not in text.split("Against")[0]


def test_log_row_is_flat():
    assert as_row(make_report())["grpo_sr/unconstrained/HR@10"] == 0.2104


def test_samples_mark_hits_and_invalid_sids(examples):
    samples = Samples(
        examples, titles=["Alien", "Brazil", "Casino", "Dune", "Eraser", "Fargo"], n_users=3, k=2, seed=0
    )
    samples.write(
        Predictions(
            system="sft",
            decoding="unconstrained",
            rows_PK=np.array([[2, -1, 0]] * 3),
            sids_PKL=np.array([[[1, 0], [7, -1], [0, 0]]] * 3),
            scores_PK=np.zeros((3, 3)),
        )
    )
    first, second, _ = samples.text().split("\n\n")
    assert first.splitlines() == [
        "user user_a",
        "  last clicked or ordered: Alien; Brazil",
        "  then clicked or ordered: Casino",
        "  sft, unconstrained",
        "    1. Casino  HIT",
        "    2. INVALID, no item has SID 7-?",
    ]
    assert "HIT" not in second
