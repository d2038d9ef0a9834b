import pytest
import torch

from genrec_rl.models.dropout import ByteDropout


def test_kept_elements_are_scaled_so_that_the_mean_stays():
    torch.manual_seed(0)
    out = ByteDropout(0.25)(torch.ones(100_003))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert out.mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("byte", range(8))
def test_every_byte_of_a_random_word_drops_alike(byte):
    torch.manual_seed(0)
    out = ByteDropout(0.5)(torch.ones(10_000, 8))[:, byte]
    assert (out == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_gradient_is_the_mask():
    x = torch.randn(4, 5, requires_grad=True)
    out = ByteDropout(0.5)(x)
    out.sum().backward()
    assert torch.equal(x.grad, torch.where(out == 0, 0.0, 2.0))


def test_seed_decides_what_is_dropped():
    x, dropout = torch.ones(64), ByteDropout(0.5)
    torch.manual_seed(3)
    first = dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(dropout(x), first)


@pytest.mark.parametrize("p", [0.0, 0.001, 1.0])
def test_edges_are_torchs(p):
    out = ByteDropout(p)(torch.ones(50))
    assert out.tolist() == [1 - round(p)] * 50 or 0 < p < 1


def test_nothing_is_dropped_in_evaluation():
    x = torch.randn(3, 4)
    assert torch.equal(ByteDropout(0.5).eval()(x), x)
