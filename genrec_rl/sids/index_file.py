"""Read semantic ids that others published: LETTER's index file, for measurements on the same codes.

Source: LETTER (arXiv:2405.07314), ``data/Beauty/Beauty.index.json``: ``{"0": ["<a_183>", "<b_70>", ...], ...}``.

Axes: n items, L levels.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from genrec_rl.errors import DataError

TOKEN = re.compile(r"<[a-z]_(\d+)>")


def read_index(
    path: str | Path, item_ids: Sequence[int] | Sequence[str], *, id_offset: int = -1
) -> tuple[Int32[np.ndarray, "n L"], tuple[int, ...]]:
    """Return the codes of the items, in their order, and each level's largest code plus one.

    Args:
        path: the index file.
        item_ids: ids of items.parquet, in order.
        id_offset: what the file adds to an integer id; LETTER counts S3-Rec's items from 0, we from 1.

    Raises:
        DataError: for a file that is no index, an item that it lacks, or SIDs of different lengths.
    """
    try:
        index = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an index of SIDs ({error})") from None
    sids: list[list[int]] = []
    for item_id in item_ids:
        key = str(item_id + id_offset) if isinstance(item_id, int) else item_id
        if key not in index:
            raise DataError(f"{path} has no SID for item {item_id} (key '{key}'); check codes_id_offset")
        matches = [TOKEN.fullmatch(token) for token in index[key]]
        sids.append([int(match[1]) for match in matches if match])
        if None in matches or len(sids[-1]) != len(sids[0]) or not matches:
            raise DataError(f"{path}: '{key}' has {index[key]}, expected {len(sids[0])} codes such as '<a_183>'")
    codes = np.array(sids, np.int32)
    return codes, tuple(int(size) for size in codes.max(axis=0) + 1)
