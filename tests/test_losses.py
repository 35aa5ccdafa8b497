"""The objectives as formulas: numbers worked out by hand, limits, and which way the gradients point."""

from __future__ import annotations

import math

import pytest
import torch

from caspo.train.losses import (
    ConfidenceLoss,
    PreferenceLoss,
    anchor_loss,
    calibrated_confidence,
    confidence_loss,
    margins,
    pair_weights,
    preference_loss,
)


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_margin_and_sigmoid_by_hand() -> None:
    """-ln s(beta ((chosen - its reference) - (rejected - its reference))): DPO, worked out."""
    margin = margins(t(-1.0 + 2.0), t(-3.0 + 2.5))
    torch.testing.assert_close(margin, t(1.5))
    torch.testing.assert_close(preference_loss(margin, 0.4), t(math.log(1 + math.exp(-0.6))))


def test_sigmoid_starts_at_ln_2_and_pushes_apart() -> None:
    """Where model and reference agree the loss is ln 2; its gradient raises the chosen and lowers the rejected step."""
    chosen, rejected = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    losses = preference_loss(margins(chosen, rejected), 0.3)
    torch.testing.assert_close(losses.detach(), torch.full((2,), math.log(2)))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert chosen.grad is not None
    assert rejected.grad is not None
    torch.testing.assert_close(chosen.grad, torch.full((2,), -0.15))
    torch.testing.assert_close(rejected.grad, torch.full((2,), 0.15))


def test_sigmoid_is_finite_far_out() -> None:
    """Margins of thousands of nats neither overflow nor lose their gradient."""
    margin = torch.tensor([-9998.0, 9998.0], requires_grad=True)
    losses = preference_loss(margin, 1.0)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(losses.detach(), torch.tensor([9998.0, 0.0]))
    assert margin.grad is not None
    torch.testing.assert_close(margin.grad, torch.tensor([-1.0, 0.0]))


def test_label_smoothing() -> None:
    """cDPO mixes the loss of the swapped pair in; its minimum is where s(beta m) = 1 - e, a finite margin."""
    margin = t(1.5)
    mixed = 0.9 * preference_loss(margin, 0.4) + 0.1 * preference_loss(-margin, 0.4)
    torch.testing.assert_close(preference_loss(margin, 0.4, "sigmoid", 0.1), mixed)
    best = torch.tensor([math.log(9) / 0.4], dtype=torch.float64, requires_grad=True)
    preference_loss(best, 0.4, "sigmoid", 0.1).sum().backward()  # type: ignore[no-untyped-call]
    assert best.grad is not None
    assert abs(float(best.grad)) < 1e-12


def test_ipo() -> None:
    """(m - 1 / 2 beta)^2: zero at 1 / (2 beta), and it pulls margins beyond that back."""
    torch.testing.assert_close(preference_loss(t(0.0, 5.0, 7.0), 0.1, "ipo"), t(25.0, 0.0, 4.0))


def test_hinge() -> None:
    """max(0, 1 - beta m): 1 where nothing was learnt, zero and flat beyond 1 / beta."""
    margin = torch.tensor([-2.0, 0.0, 1.0, 2.5], requires_grad=True)
    losses = preference_loss(margin, 0.5, "hinge")
    losses.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(losses.detach(), torch.tensor([2.0, 1.0, 0.5, 0.0]))
    assert margin.grad is not None
    torch.testing.assert_close(margin.grad, torch.tensor([-0.5, -0.5, -0.5, 0.0]))


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge"])
def test_pairs_do_not_mix(kind: PreferenceLoss) -> None:
    """A pair's loss is of its own margin alone."""
    together = preference_loss(t(-1.0, 0.5, 3.0), 0.7, kind)
    for i, value in enumerate((-1.0, 0.5, 3.0)):
        torch.testing.assert_close(preference_loss(t(value), 0.7, kind)[0], together[i])


def test_pair_weights() -> None:
    """Weights that pairs came with count on; what the model has more wrong counts more."""
    own, chosen, rejected = t(1.0, 2.0, 1.0), t(0.1, 0.5, 1.0), t(1.0, 0.5, 0.25)
    torch.testing.assert_close(pair_weights(own, chosen, rejected, "none"), own)
    torch.testing.assert_close(pair_weights(own, chosen, rejected, "rejected_confidence"), t(1.0, 1.0, 0.25))
    torch.testing.assert_close(pair_weights(own, chosen, rejected, "margin"), t(0.95, 1.0, 0.125))
    assert float(pair_weights(t(1.0), t(1.0), t(0.0), "margin")) == 0, "nothing to learn where it is right already"


def test_anchor_is_per_token() -> None:
    """The anchor is the mean negative log-likelihood of a step's tokens."""
    torch.testing.assert_close(anchor_loss(t(-6.0, -2.0), t(3.0, 1.0)), t(2.0, 2.0))


def test_calibrated_confidence() -> None:
    """Without a fit exp(-H); with one sigmoid(b - a H); both fall with entropy and stay within (0, 1]."""
    entropies = torch.linspace(0, 5, 50, dtype=torch.float64)
    raw, fitted = calibrated_confidence(entropies, None, 0.0), calibrated_confidence(entropies, 2.0, 1.0)
    torch.testing.assert_close(raw, torch.exp(-entropies))
    torch.testing.assert_close(fitted[[0]], t(1 / (1 + math.exp(-1))))
    torch.testing.assert_close(calibrated_confidence(t(0.5), 2.0, 1.0), t(0.5))
    for confidence in (raw, fitted):
        assert bool((confidence.diff() < 0).all())
        assert bool(((confidence > 0) & (confidence <= 1)).all())


def test_confidence_by_hand() -> None:
    """Brier score and log score of two steps, one right and one wrong."""
    believed, right = t(0.8, 0.3), t(1.0, 0.0)
    torch.testing.assert_close(confidence_loss(believed, right), t(0.04, 0.09))
    torch.testing.assert_close(
        confidence_loss(believed, right, "cross_entropy"), t(-math.log(0.8), -math.log(0.7)), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("kind", ["brier", "cross_entropy"])
@pytest.mark.parametrize("truth", [0.05, 0.37, 0.5, 0.9])
def test_confidence_losses_are_proper(kind: ConfidenceLoss, truth: float) -> None:
    """Who expects a loss as small as can be says the true probability."""
    said = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    expected = truth * confidence_loss(said, torch.ones_like(said), kind)
    expected += (1 - truth) * confidence_loss(said, torch.zeros_like(said), kind)
    assert float(said[expected.argmin()]) == pytest.approx(truth)


@pytest.mark.parametrize("kind", ["brier", "cross_entropy"])
@pytest.mark.parametrize("fit", [(None, 0.0), (1.5, 2.0)])
def test_confidence_gradient(kind: ConfidenceLoss, fit: tuple[float | None, float]) -> None:
    """Through the map of confidences: the entropy of right steps is pulled down, that of wrong ones up."""
    entropies = torch.tensor([0.5, 0.5], requires_grad=True)
    confidence_loss(calibrated_confidence(entropies, *fit), torch.tensor([1.0, 0.0]), kind).sum().backward()  # type: ignore[no-untyped-call]
    assert entropies.grad is not None
    assert entropies.grad[0] > 0 > entropies.grad[1]


def test_cross_entropy_of_certain_steps_is_finite() -> None:
    """A step of entropy 0 that is wrong costs much, but not infinity."""
    loss = confidence_loss(calibrated_confidence(torch.zeros(1), None, 0.0), torch.zeros(1), "cross_entropy")
    assert float(loss) == pytest.approx(-math.log(1e-6), rel=0.01)
