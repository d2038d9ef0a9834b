import pytest
import torch

from genrec_rl.rl.losses import positive_nll

LOG_PROBS = torch.tensor([[[-1.0, -2.0], [-3.0, -4.0]], [[-5.0, -6.0], [-9.0, -9.0]]])


def test_nll_is_the_mean_over_prompts_of_the_mean_over_positives():
    is_positive = torch.tensor([[True, True], [True, False]])
    assert positive_nll(LOG_PROBS, is_positive).item() == pytest.approx(((3 + 7) / 2 + 11) / 2)


def test_mean_reduction_divides_by_the_tokens():
    is_positive = torch.tensor([[True, True], [True, False]])
    assert positive_nll(LOG_PROBS, is_positive, reduction="mean").item() == pytest.approx((5 + 11) / 2 / 2)


def test_prompt_without_positives_counts_as_zero():
    is_positive = torch.tensor([[True, True], [False, False]])
    assert positive_nll(LOG_PROBS, is_positive).item() == pytest.approx(5 / 2)


def test_weights_multiply_each_positive_and_the_divisor_stays_their_number():
    is_positive, weights = torch.tensor([[True, True], [True, False]]), torch.tensor([[2.0, 0.5], [3.0, 9.0]])
    nll = -LOG_PROBS.sum(-1)
    expected = ((2 * nll[0, 0] + 0.5 * nll[0, 1]) / 2 + 3 * nll[1, 0]) / 2
    assert positive_nll(LOG_PROBS, is_positive, weights_PM=weights).item() == pytest.approx(expected.item())


def test_padding_gets_no_gradient():
    log_probs = LOG_PROBS.clone().requires_grad_()
    positive_nll(log_probs, torch.tensor([[True, True], [True, False]])).backward()
    assert log_probs.grad[1, 1].tolist() == [0, 0]
    assert (log_probs.grad[0] < 0).all()


def test_padding_of_minus_infinity_is_no_nan():
    log_probs = LOG_PROBS.clone()
    log_probs[1, 1] = -torch.inf
    assert positive_nll(log_probs, torch.tensor([[True, True], [True, False]])).isfinite()


def test_halves_of_a_batch_average_to_the_whole():
    is_positive = torch.tensor([[True, True], [False, False]])
    halves = [positive_nll(LOG_PROBS[i : i + 1], is_positive[i : i + 1]) for i in range(2)]
    assert torch.stack(halves).mean().item() == pytest.approx(positive_nll(LOG_PROBS, is_positive).item())
