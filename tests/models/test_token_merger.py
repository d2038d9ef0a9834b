import torch

from genrec_rl.models.token_merger import TokenMerger


def test_merge_is_a_linear_map_of_the_concatenation():
    merger = TokenMerger(2, 3)
    codes = torch.randn(4, 2, 3)
    expected = torch.cat([codes[:, 0], codes[:, 1]], dim=1) @ merger.weight.T + merger.bias
    assert torch.allclose(merger(codes), expected, atol=1e-6)


def test_start_is_the_mean_of_the_codes():
    merger = TokenMerger(3, 4)
    merger.start_as_mean()
    codes = torch.randn(5, 3, 4)
    assert torch.allclose(merger(codes), codes.mean(1), atol=1e-6)
