import itertools

import pytest
import torch

from genrec_rl.models.prefix_tree import BranchLogits
from genrec_rl.rl.listwise import listwise_kl, share_out

ALL = torch.tensor([list(itertools.product(range(2), range(2, 4), range(4, 6)))])
"""Every SID of three levels with two codes each, tokens 0-1, 2-3, 4-5."""


def tables(seed: int) -> list[torch.Tensor]:
    """Random conditional log-probabilities: of level 1; of level 2 by code 1; of level 3 by codes 1 and 2."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*[2] * level, 6, generator=generator).double().log_softmax(-1) for level in range(3)]


def along(conditionals, rollouts) -> BranchLogits:
    """Lay conditionals out along rollouts, as a forward would."""
    first, second, third = conditionals
    codes = rollouts - torch.tensor([0, 2, 4])
    later = [second[codes[0, :, 0]], third[codes[0, :, 0], codes[0, :, 1]]]
    return BranchLogits(first[None], torch.stack(later, dim=1)[None])


def sequence_log_probs(conditionals, rollouts) -> torch.Tensor:
    laid = along(conditionals, rollouts)
    first = laid.first_BV[0, rollouts[0, :, 0]]
    later = laid.later_BGWV[0].gather(2, rollouts[0, :, 1:, None])[..., 0]
    return (first + later.sum(1))[None]


def test_the_mass_of_the_group_stays_and_shares_go_by_exponentials():
    log_probs = torch.tensor([[0.2, 0.1]]).log()
    found = share_out(log_probs, torch.tensor([[0.0, 1.0]]), weight=2.0)
    odds = 0.1 / 0.2 * torch.e**2
    assert found.sum().item() == pytest.approx(0.3)
    assert (found[0, 1] / found[0, 0]).item() == pytest.approx(odds)


def test_weight_zero_and_the_reference_itself_have_no_loss():
    reference = along(tables(0), ALL)
    margins = torch.linspace(-2, 2, 8)[None].double()
    assert listwise_kl(reference, reference, ALL, margins, weight=0.0).item() == pytest.approx(0, abs=1e-12)
    assert listwise_kl(reference, reference, ALL, margins, weight=1.0).item() > 0.001


def test_per_mass_divides_by_the_groups_probability_under_the_reference():
    rollouts, margins = ALL[:, :2], torch.tensor([[-1.0, 1.0]]).double()
    reference, policy = along(tables(0), rollouts), along(tables(1), rollouts)
    mass = sequence_log_probs(tables(0), rollouts).exp().sum()
    whole = listwise_kl(policy, reference, rollouts, margins, weight=2.0)
    divided = listwise_kl(policy, reference, rollouts, margins, weight=2.0, per_mass=True)
    assert 0.001 < mass < 0.5
    assert divided.item() == pytest.approx((whole / mass).item())


def test_a_group_of_next_to_no_mass_counts_as_one_thousandth():
    rollouts, margins = ALL[:, :2], torch.tensor([[-1.0, 1.0]]).double()
    conditionals = tables(0)
    conditionals[0] = torch.tensor([-10.0, 0, 0, 0, 0, 0]).double().log_softmax(-1)  # both begin with token 0
    reference, policy = along(conditionals, rollouts), along(tables(1), rollouts)
    whole = listwise_kl(policy, reference, rollouts, margins, weight=2.0)
    divided = listwise_kl(policy, reference, rollouts, margins, weight=2.0, per_mass=True)
    assert divided.item() == pytest.approx(1000 * whole.item())


@pytest.mark.parametrize("order", [range(8), [5, 2, 7, 0, 1, 6, 3, 4]])
def test_over_all_sids_it_is_the_kl_of_whole_sequences(order):
    rollouts = ALL[:, list(order)]
    reference, policy = tables(0), tables(1)
    margins = torch.randn(1, 8, generator=torch.Generator().manual_seed(2)).double()
    log_ref, log_policy = (sequence_log_probs(t, rollouts) for t in (reference, policy))
    target = share_out(log_ref, margins, weight=1.5)
    found = listwise_kl(along(policy, rollouts), along(reference, rollouts), rollouts, margins, weight=1.5)
    # sequences of other tokens than SIDs (three levels of six tokens) have the reference's probability as target
    outside = 0.0
    for tokens in itertools.product(range(6), repeat=3):
        outside += _outside_term(tokens, reference, policy)
    inside = (target * (target.log() - log_policy)).sum()
    assert found.item() == pytest.approx((inside + outside).item(), rel=1e-9)


def _outside_term(tokens, reference, policy) -> float:
    """p_ref (log p_ref - log pi) of a sequence that leaves the SIDs; behind its leaving both are taken as equal."""
    if tokens[0] > 1:
        if tokens[1:] != (0, 0):
            return 0.0
        p, q = (t[0][tokens[0]] for t in (reference, policy))
    elif not 2 <= tokens[1] <= 3:
        if tokens[2] != 0:
            return 0.0
        p, q = (t[0][tokens[0]] + t[1][tokens[0], tokens[1]] for t in (reference, policy))
    elif not 4 <= tokens[2] <= 5:
        p, q = (
            t[0][tokens[0]] + t[1][tokens[0], tokens[1]] + t[2][tokens[0], tokens[1] - 2, tokens[2]]
            for t in (reference, policy)
        )
    else:
        return 0.0
    return (p.exp() * (p - q)).item()


def test_fitting_it_reaches_the_target():
    reference = tables(0)
    rollouts, margins = ALL[:, [1, 3, 4]], torch.tensor([[1.0, -1.0, 0.5]]).double()
    weights = [t.clone().requires_grad_() for t in reference]
    optimizer = torch.optim.LBFGS(weights, max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        policy = along([w.log_softmax(-1) for w in weights], rollouts)
        loss = listwise_kl(policy, along(reference, rollouts), rollouts, margins, weight=2.0).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    fitted = [w.detach().log_softmax(-1) for w in weights]
    target = share_out(sequence_log_probs(reference, rollouts), margins, weight=2.0)
    assert sequence_log_probs(fitted, rollouts).exp()[0].tolist() == pytest.approx(target[0].tolist(), abs=1e-4)
    others = ALL[:, [0, 2, 5, 6, 7]]
    kept = sequence_log_probs(reference, others).exp()[0].tolist()
    assert sequence_log_probs(fitted, others).exp()[0].tolist() == pytest.approx(kept, abs=1e-4)


def test_tokens_that_are_not_allowed_cost_nothing_and_have_a_gradient():
    allowed = torch.ones(1, 3, 3, 6, dtype=torch.bool)
    allowed[..., 5] = False
    rollouts = ALL[:, [0, 2, 4]]
    logits = [t.clone().requires_grad_() for t in tables(1)]
    policy = along(logits, rollouts).log_probs(allowed_BGCV=allowed)
    reference = along(tables(0), rollouts).log_probs(allowed_BGCV=allowed)
    loss = listwise_kl(policy, reference, rollouts, torch.tensor([[1.0, 0.0, -1.0]]), weight=1.0).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(t.grad).all() for t in logits)
    assert (logits[2].grad[..., 5] == 0).all()
