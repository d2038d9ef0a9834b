"""The table of every recommendation made: what each system proposed at each rank, valid or not."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from genrec_rl import metrics
from genrec_rl.evaluation.evaluate import Predictions
from genrec_rl.types import NO_ITEM, Example


class PredictionsWriter:
    """Writes ``predictions.parquet``, one system and decoding at a time, so that one at a time is in memory.

    Columns: request_id, user_id, system, decoding, rank (from 1), item_id (null where the SID is invalid), sid
    (codes joined by ``-``; ? stands for a token that is no code of its level), score (log-probability) and
    is_valid; where requests are worth something also value: what the page's item at this rank was, else 0. The file
    appears under its name when the writer closes without an error.
    """

    def __init__(
        self, path: str | Path, examples: Sequence[Example], *, item_ids: Sequence[str] | Sequence[int]
    ) -> None:
        self._path = Path(path)
        self._part = self._path.with_suffix(".part")
        self._requests = pl.DataFrame(
            {
                "request_id": [str(example.request_id) for example in examples],
                "user_id": [str(example.context.user_id) for example in examples],
            }
        )
        self._positives = [example.positives for example in examples]
        self._values = [example.positive_values for example in examples]
        self._item_ids = pl.Series("item_id", item_ids)
        self._writer: pq.ParquetWriter | None = None

    def write(self, answers: Predictions) -> None:
        """Append one system's answers."""
        table = self._frame(answers).to_arrow()
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._part, table.schema, compression="zstd")
        self._writer.write_table(table)

    def _frame(self, answers: Predictions) -> pl.DataFrame:
        n_requests, n_ranks = answers.rows_PK.shape
        rows = pl.Series(answers.rows_PK.ravel())
        is_valid = rows != NO_ITEM
        sids = pl.DataFrame(answers.sids_PKL.reshape(n_requests * n_ranks, -1))
        worth_PK = metrics.value_by_rank(answers.rows_PK, self._positives, self._values, k=n_ranks)
        worth = {"value": pl.Series(worth_PK.ravel())} if any(value.any() for value in self._values) else {}
        return self._requests[np.repeat(np.arange(n_requests), n_ranks)].with_columns(
            system=pl.lit(answers.system),
            decoding=pl.lit(answers.decoding),
            rank=pl.Series(np.tile(np.arange(1, n_ranks + 1, dtype=np.int32), n_requests)),
            item_id=self._item_ids.gather(rows.set(~is_valid, None)),
            sid=sids.select(pl.concat_str(pl.all().cast(pl.String).replace("-1", "?"), separator="-")).to_series(),
            score=pl.Series(answers.scores_PK.ravel()),
            is_valid=is_valid,
            **worth,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            if kind is None:
                self._part.replace(self._path)
            else:
                self._part.unlink()
