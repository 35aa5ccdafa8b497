"""The objectives as formulas."""

from __future__ import annotations

import math

import torch

from caspo.train.losses import anchor_loss, confidence_loss, dpo_loss


def test_dpo_loss_by_hand() -> None:
    """-ln sigmoid(beta * ((chosen - its reference) - (rejected - its reference))), and its margin."""
    losses, margins = dpo_loss(*(torch.tensor([v]) for v in (-1.0, -3.0, -2.0, -2.5)), beta=0.4)
    assert math.isclose(float(margins), 0.4 * 1.5, rel_tol=1e-6)
    assert math.isclose(float(losses), math.log(1 + math.exp(-0.6)), rel_tol=1e-6)


def test_dpo_loss_starts_at_ln_2_and_pushes_apart() -> None:
    """Where model and reference agree the loss is ln 2; its gradient raises the chosen and lowers the rejected step."""
    chosen, rejected = torch.tensor([-1.0, -9.0], requires_grad=True), torch.tensor([-4.0, -2.0], requires_grad=True)
    losses, _ = dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), 0.3)
    torch.testing.assert_close(losses, torch.full((2,), math.log(2)))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert chosen.grad is not None
    assert rejected.grad is not None
    torch.testing.assert_close(chosen.grad, torch.full((2,), -0.15))
    torch.testing.assert_close(rejected.grad, torch.full((2,), 0.15))


def test_dpo_loss_is_finite_far_out() -> None:
    """Margins of thousands of nats neither overflow nor lose their gradient's sign."""
    losses, _ = dpo_loss(*(torch.tensor([v]) for v in (-5000.0, -1.0, -1.0, -5000.0)), beta=1.0)
    assert math.isclose(float(losses), 9998.0, rel_tol=1e-5)


def test_anchor_is_per_token() -> None:
    """The anchor is the mean negative log-likelihood of a step's tokens."""
    torch.testing.assert_close(
        anchor_loss(torch.tensor([-6.0, -2.0]), torch.tensor([3.0, 1.0])), torch.tensor([2.0, 2.0])
    )


def test_confidence_gradient() -> None:
    """The Brier term pulls the entropy of right steps down and that of wrong steps up."""
    entropies = torch.tensor([0.5, 0.5], requires_grad=True)
    loss = confidence_loss(entropies, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(loss.detach(), torch.tensor([(math.exp(-0.5) - 1) ** 2, math.exp(-1.0)]))
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert entropies.grad is not None
    assert entropies.grad[0] > 0 > entropies.grad[1]
