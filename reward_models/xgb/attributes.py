"""What items have in common, such as brands and product types, as vectors whose cosines trees can see.

N   items        A   dimensions
"""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float32
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import MultiLabelBinarizer, normalize

ATTRIBUTES = "attribute_ids"
"""The column of items.parquet."""


def attribute_vectors(
    attributes: Sequence[Sequence[Hashable] | None], *, size: int = 64, seed: int = 0
) -> Float32[np.ndarray, "N A"]:
    """Return unit vectors whose cosines are nearly those of the attributes, each weighed by its rarity (tf-idf).

    They are the ``size`` largest singular directions, or one for each attribute where there are at most so many. An
    item without attributes has a zero vector.
    """
    binarizer = MultiLabelBinarizer(sparse_output=True)
    weighed = TfidfTransformer().fit_transform(binarizer.fit_transform([row or () for row in attributes]))
    if weighed.shape[1] > size:
        weighed = TruncatedSVD(size, random_state=seed).fit_transform(weighed)
    else:
        weighed = weighed.toarray()
    return normalize(weighed).astype(np.float32)
