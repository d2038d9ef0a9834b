"""The predictions table: one row per rank, nulls where nothing was recommended."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from genrec_rl.evaluation.evaluate import Predictions
from genrec_rl.evaluation.predictions import PredictionsWriter


def answers(examples, decoding="unconstrained"):
    n = len(examples)
    return Predictions(
        system="sft",
        decoding=decoding,
        rows_PK=np.tile([[2, -1]], (n, 1)),
        sids_PKL=np.tile([[[1, 0], [7, -1]]], (n, 1, 1)).astype(np.int32),
        scores_PK=np.tile([[-0.5, -1.5]], (n, 1)).astype(np.float32),
    )


def test_row_of_a_valid_and_of_an_invalid_rank(tmp_path, examples, catalog):
    with PredictionsWriter(tmp_path / "predictions.parquet", examples, item_ids=catalog.item_ids.tolist()) as writer:
        writer.write(answers(examples))
    table = pl.read_parquet(tmp_path / "predictions.parquet")
    assert table.rows()[:2] == [
        ("request_a", "user_a", "sft", "unconstrained", 1, "item2", "1-0", -0.5, True),
        ("request_a", "user_a", "sft", "unconstrained", 2, None, "7-?", -1.5, False),
    ]
    assert table["request_id"].unique(maintain_order=True).to_list() == ["request_a", "request_b", "request_c"]


def test_systems_follow_one_another_in_one_file(tmp_path, examples, catalog):
    with PredictionsWriter(tmp_path / "predictions.parquet", examples, item_ids=catalog.item_ids.tolist()) as writer:
        writer.write(answers(examples, "constrained"))
        writer.write(answers(examples, "unconstrained"))
    table = pl.read_parquet(tmp_path / "predictions.parquet")
    assert table["decoding"].to_list() == ["constrained"] * 6 + ["unconstrained"] * 6


def test_item_ids_keep_the_users_type(tmp_path, examples):
    with PredictionsWriter(tmp_path / "predictions.parquet", examples, item_ids=[10, 20, 30]) as writer:
        writer.write(answers(examples))
    assert pl.read_parquet(tmp_path / "predictions.parquet")["item_id"].to_list() == [30, None] * 3


def test_failed_evaluation_leaves_no_table(tmp_path, examples):
    def fail_half_way():
        with PredictionsWriter(tmp_path / "predictions.parquet", examples, item_ids=list("abcdef")) as writer:
            writer.write(answers(examples))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert not list(tmp_path.iterdir())


def test_rank_of_a_valued_positive_says_what_it_was_worth(tmp_path, examples, catalog):
    valued = [replace(example, values=np.full(len(example.items), 2.5)) for example in examples]
    with PredictionsWriter(tmp_path / "p.parquet", valued, item_ids=catalog.item_ids.tolist()) as writer:
        writer.write(answers(valued))
    assert pl.read_parquet(tmp_path / "p.parquet")["value"].to_list() == [2.5, 0, 0, 0, 0, 0]  # item 2 is a's alone
