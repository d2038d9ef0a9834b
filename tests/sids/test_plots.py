import matplotlib.image
import numpy as np

from genrec_rl.sids.plots import plot_codebooks


def test_picture_is_written_for_sizes_that_are_no_squares(tmp_path):
    codes = np.array([[0, 1, 2], [2, 6, 0]], np.int32)
    plot_codebooks(codes, (3, 7, 16), tmp_path / "codebooks.png")
    image = matplotlib.image.imread(tmp_path / "codebooks.png")
    assert image.shape[1] > image.shape[0] > 400
    assert len(np.unique(image[..., 0])) > 10
