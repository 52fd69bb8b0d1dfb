r"""Samplers: functions that carry y₀ along the flow to y₁ with a stated number of network calls.

For a model that predicts y₁ the flow is :math:`dy/dt = (\hat y_1(y, t) - y) / (1 - t)`. While
:math:`\hat y_1` stays the same its solution is the straight line to :math:`\hat y_1`, which an
Euler step follows exactly; a step that ends at t = 1 therefore ends on :math:`\hat y_1`, and the
singularity of the right-hand side is never met.

All take ``(model, y_0, n_steps)`` and return y₁. ``model(y_t, t)`` with ``t [1]`` is a denoiser
bound to its slide or slides; ``n_steps`` is the number of network calls.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["estflow", "euler", "heun", "stflow"]

# (y_t [N, G], t [1]) -> estimate of y₁ [N, G]
Model = Callable[[Tensor, Tensor], Tensor]
Sampler = Callable[[Model, Tensor, int], Tensor]

_STFLOW_START = 0.01


def euler(model: Model, y_0: Tensor, n_steps: int) -> Tensor:
    r"""Integrate by Euler steps at the times :math:`t_s = s / S`, S = n_steps; order 1.

    :math:`y \leftarrow y + \frac{Δt}{1 - t_s} (\hat y_1 - y) = y + \frac{1}{S - s}(\hat y_1 - y)`;
    the last step lands on :math:`\hat y_1`.

    Args:
        model: called as ``model(y_t [N, G], t [1]) -> y_1 [N, G]``.
        y_0: ``[N, G]`` sample of the prior.
        n_steps: S, network calls.

    Returns:
        ``[N, G]``.

    Raises:
        ValueError: ``n_steps`` < 1.
    """
    return _euler(model, y_0, n_steps, start=0.0)


def stflow(model: Model, y_0: Tensor, n_steps: int) -> Tensor:
    r"""Sample as the published code does: Euler steps that begin at t = 0.01.

    The published times are ``linspace(0.01, 1, S)``; S points make S - 1 network calls, so
    ``n_steps`` = S - 1 (the published S = 5 is ``n_steps=4``). The answer is the last
    :math:`\hat y_1`. y₀ is taken as the state at 0.01, an error that more steps do not remove.
    Arguments as in :func:`euler`.
    """
    return _euler(model, y_0, n_steps, start=_STFLOW_START)


def _euler(model: Model, y_0: Tensor, n_steps: int, start: float) -> Tensor:
    predict = _predictor(model, y_0, n_steps)
    y = y_0
    for s in range(n_steps):
        y_1 = predict(y, start + (1 - start) * s / n_steps)
        # on equal steps up to t = 1, dt / (1 - t) is 1 / (S - s) wherever they begin
        y = torch.lerp(y, y_1, 1 / (n_steps - s))
    return y


def estflow(model: Model, y_0: Tensor, n_steps: int) -> Tensor:
    r"""Sample as the ESTFlow fork does, whose steps lack the factor 1 / (1 - t).

    :math:`t_s = s / S,\ y \leftarrow y + \frac1S (\hat y_1 - y)`; the answer is the
    :math:`\hat y_1` of step S - 2, so S = n_steps + 1. It does not converge to the flow: at most
    a share 1 - 1/e of the way is gone before the last prediction. Arguments as in :func:`euler`.
    """
    predict = _predictor(model, y_0, n_steps)
    y, y_1 = y_0, y_0
    for s in range(n_steps):
        y_1 = predict(y, s / (n_steps + 1))
        y = y + (y_1 - y) / (n_steps + 1)
    return y_1


def heun(model: Model, y_0: Tensor, n_steps: int) -> Tensor:
    r"""Integrate by Heun's method (the explicit trapezoidal rule); order 2.

    The interval [0, 1] is cut into K = ⌊n_steps / 2⌋ + 1 equal parts. A Heun step spends two
    calls: an Euler step, then the mean of the slopes at its two ends. The slope at t = 1 is 0/0,
    so the last part is an Euler step, one call, which lands on :math:`\hat y_1`; if n_steps is
    even the first part is one too (the flow still contracts its error). A single Euler step errs
    by O(1/K²), so the order is 2. Arguments as in :func:`euler`.
    """
    predict = _predictor(model, y_0, n_steps)
    parts = n_steps // 2 + 1
    y = y_0
    for s in range(parts):
        y_1 = predict(y, s / parts)
        ahead = torch.lerp(y, y_1, 1 / (parts - s))
        if s == parts - 1 or (s == 0 and n_steps % 2 == 0):
            y = ahead
            continue
        slope = (y_1 - y) / (parts - s)  # per part: dt / (1 - t) = 1 / (K - s)
        slope_ahead = (predict(ahead, (s + 1) / parts) - ahead) / (parts - s - 1)
        y = y + (slope + slope_ahead) / 2
    return y


def _predictor(model: Model, y_0: Tensor, n_steps: int) -> Callable[[Tensor, float], Tensor]:
    """Return the model as a function of the state and the time."""
    if n_steps < 1:
        raise ValueError(f"n_steps must be >= 1, got {n_steps}")
    one = torch.ones(1, dtype=y_0.dtype, device=y_0.device)
    # under autocast a model answers in another type than that of the state
    return lambda y, t: model(y, t * one).to(y.dtype)
