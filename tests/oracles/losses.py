"""Losses and their exact gradients with respect to the scores, by plain loops in float64.

Arrays are [B, T]; every loss is sum over actions of weight times token loss. Functions return (loss, gradient), where
gradients are written out by hand from the formulas, so that what is detached in a method is visible here.
"""

import math

import numpy as np

BOUND = 20.0  # log-ratios are kept within +-20 nats, and are constant beyond


def log_ratio(logp, other):
    """log p - log q within +-20 nats, and its derivative by log p: 0 where the bound or an infinity rules."""
    if math.isinf(logp) or math.isinf(other):
        if logp == other:
            return 0.0, 0.0
        return (BOUND, 0.0) if logp > other else (-BOUND, 0.0)
    difference = logp - other
    if abs(difference) > BOUND:
        return math.copysign(BOUND, difference), 0.0
    return difference, 1.0


def token_ratio(logp, behavior, mask, segment):
    """x_t = log pi(o_t) - log mu(o_t), and the matrix dx_t / dlogp_u of each row, [B, T, T]."""
    value, slope = np.zeros(logp.shape), np.zeros((*logp.shape, logp.shape[1]))
    for b, t in _actions(mask):
        value[b, t], slope[b, t, t] = log_ratio(float(logp[b, t]), float(behavior[b, t]))
    return value, slope


def sequence_ratio(logp, behavior, mask, segment):
    """GSPO (https://arxiv.org/abs/2507.18071), equation 7: log s = 1 / |y| sum_t log (pi / mu), at each action of y."""
    single, single_slope = token_ratio(logp, behavior, mask, segment)
    value, slope = np.zeros(logp.shape), np.zeros((*logp.shape, logp.shape[1]))
    for b, t in _actions(mask):
        own = [u for u in range(logp.shape[1]) if mask[b, u] > 0 and segment[b, u] == segment[b, t]]
        for u in own:
            value[b, t] += single[b, u] / len(own)
            slope[b, t, u] = single_slope[b, u, u] / len(own)
    return value, slope


def clip(x, logp, advantage, *, low=0.2, high=0.2, dual=None):
    """-min(r A, clip(r, 1 - low, 1 + high) A), https://arxiv.org/abs/1707.06347, equation 7.

    With `dual` = c: -max(that minimum, c A) where A < 0, https://arxiv.org/abs/1912.09729, equation 5.
    Returns loss, its derivative by x = log r, and by log pi apart from x.
    """
    r = math.exp(x)
    bounded = min(max(r, 1.0 - low), 1.0 + high)
    if r * advantage <= bounded * advantage:
        gain, slope = r * advantage, r * advantage
    else:
        gain, slope = bounded * advantage, 0.0
    if dual is not None and advantage < 0 and dual * advantage > gain:
        gain, slope = dual * advantage, 0.0
    return -gain, -slope, 0.0


def unclipped(x, logp, advantage):
    """-r A."""
    return -math.exp(x) * advantage, -math.exp(x) * advantage, 0.0


def score_function(x, logp, advantage):
    """-A log pi, https://doi.org/10.1007/BF00992696; a token of probability 0 carries nothing."""
    if math.isinf(logp):
        return 0.0, 0.0, 0.0
    return -advantage * logp, 0.0, -advantage


def cispo(x, logp, advantage, *, high, low=None):
    """-sg(clip(r, 1 - low, 1 + high)) A log pi, https://arxiv.org/abs/2506.13585, equations 4 and 5."""
    if math.isinf(logp):
        return 0.0, 0.0, 0.0
    r = min(math.exp(x), 1.0 + high)
    if low is not None:
        r = max(r, 1.0 - low)
    return -r * advantage * logp, 0.0, -r * advantage


def policy(logp, behavior, advantage, weight, mask, segment, *, ratio, trust):
    """sum_t w_t trust(x_t, log pi_t, A_t) and its gradient by logp; `ratio` None stands for x = 0."""
    if ratio is None:
        value, slope = np.zeros(logp.shape), np.zeros((*logp.shape, logp.shape[1]))
    else:
        value, slope = ratio(logp, behavior, mask, segment)
    loss, gradient = 0.0, np.zeros(logp.shape)
    for b, t in _actions(mask):
        token_loss, by_x, by_logp = trust(float(value[b, t]), float(logp[b, t]), float(advantage[b, t]))
        loss += float(weight[b, t]) * token_loss
        gradient[b, t] += float(weight[b, t]) * by_logp
        for u in range(logp.shape[1]):
            gradient[b, u] += float(weight[b, t]) * by_x * slope[b, t, u]
    return loss, gradient


def kl(logp, reference, weight, mask, *, coefficient, kind):
    """beta times k1, k2 or k3 of http://joschu.net/blog/kl-approx.html, with x = log(reference / policy)."""
    loss, gradient = 0.0, np.zeros(logp.shape)
    for b, t in _actions(mask):
        x, slope = log_ratio(float(reference[b, t]), float(logp[b, t]))
        value = {"k1": -x, "k2": x * x / 2.0, "k3": math.expm1(x) - x}[kind]
        by_x = {"k1": -1.0, "k2": x, "k3": math.expm1(x)}[kind]
        loss += float(weight[b, t]) * coefficient * value
        gradient[b, t] = float(weight[b, t]) * coefficient * by_x * -slope
    return loss, gradient


def entropy_bonus(entropy, weight, mask, *, coefficient):
    """-c sum_t w_t H_t, https://arxiv.org/abs/1602.01783; the gradient is by the entropy."""
    loss, gradient = 0.0, np.zeros(entropy.shape)
    for b, t in _actions(mask):
        loss -= coefficient * float(weight[b, t]) * float(entropy[b, t])
        gradient[b, t] = -coefficient * float(weight[b, t])
    return loss, gradient


def value_loss(value, old, returns, weight, mask, *, coefficient=0.5, clip=0.2, huber=None):
    """c max(error(V - R), error(V_old + clip(V - V_old) - R)), https://arxiv.org/abs/2005.12729, section 3.

    error(e) = e^2, or Huber's e^2 / 2 up to d and d (|e| - d / 2) beyond. The gradient is by V.
    """

    def error(e):
        if huber is None:
            return e * e, 2.0 * e
        if abs(e) <= huber:
            return e * e / 2.0, e
        return huber * (abs(e) - huber / 2.0), math.copysign(huber, e)

    loss, gradient = 0.0, np.zeros(value.shape)
    for b, t in _actions(mask):
        new, before, target = float(value[b, t]), float(old[b, t]), float(returns[b, t])
        result, slope = error(new - target)
        if clip is not None and abs(new - before) > clip:
            bounded, _ = error(before + math.copysign(clip, new - before) - target)
            if bounded > result:
                result, slope = bounded, 0.0
        loss += coefficient * float(weight[b, t]) * result
        gradient[b, t] = coefficient * float(weight[b, t]) * slope
    return loss, gradient


def negative_log_likelihood(logp, weight, mask, *, coefficient=1.0):
    """-c sum_t w_t log pi(o_t); a token of probability 0 carries nothing."""
    loss, gradient = 0.0, np.zeros(logp.shape)
    for b, t in _actions(mask):
        if not math.isinf(logp[b, t]):
            loss -= coefficient * float(weight[b, t]) * float(logp[b, t])
            gradient[b, t] = -coefficient * float(weight[b, t])
    return loss, gradient


def policy_diagnostics(logp, behavior, advantage, weight, mask, segment, *, ratio, trust):
    """Shares of the surrogate (to be maximised) from actions of positive and of negative advantage."""
    value, _ = ratio(logp, behavior, mask, segment)
    positive = negative = 0.0
    for b, t in _actions(mask):
        gain = -trust(float(value[b, t]), float(logp[b, t]), float(advantage[b, t]))[0] * float(weight[b, t])
        if advantage[b, t] > 0:
            positive += gain
        if advantage[b, t] < 0:
            negative += gain
    return positive, negative


def _actions(mask):
    return [(b, t) for b in range(mask.shape[0]) for t in range(mask.shape[1]) if mask[b, t] > 0]


def categorical_value_loss(outputs, returns, weight, mask, *, low, high, coefficient=0.5, smoothing=0.75):
    """Cross-entropy of softmax(outputs) with a normal distribution around the return that is cut into bins.

    HL-Gauss, https://arxiv.org/abs/2403.03950, section 3.1. The gradient is by the outputs.
    """
    loss, gradient = 0.0, np.zeros(outputs.shape)
    count = outputs.shape[-1]
    distance = (high - low) / (count - 1)
    centres = [low + distance * i for i in range(count)]
    sigma = smoothing * distance
    for b, t in _actions(mask):
        target = min(max(float(returns[b, t]), low), high)
        cut = [
            [0.5 * (1 + math.erf((c + side * distance / 2 - target) / (sigma * math.sqrt(2)))) for side in (-1, 1)]
            for c in centres
        ]
        mass = np.array([upper - lower for lower, upper in cut])
        share = mass / mass.sum()
        logits = outputs[b, t].astype(np.float64)
        probability = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        loss -= coefficient * float(weight[b, t]) * float((share * np.log(probability)).sum())
        gradient[b, t] = coefficient * float(weight[b, t]) * (probability - share)
    return loss, gradient


def quantile_value_loss(outputs, returns, weight, mask, *, coefficient=0.5, huber=1.0):
    """Quantile Huber loss, https://arxiv.org/abs/1710.10044, equation 10, with one sample of the return."""
    loss, gradient = 0.0, np.zeros(outputs.shape)
    count = outputs.shape[-1]
    for b, t in _actions(mask):
        for i in range(count):
            error = float(returns[b, t]) - float(outputs[b, t, i])
            small = abs(error) <= huber
            size = error * error / 2 if small else huber * (abs(error) - huber / 2)
            slope = error if small else math.copysign(huber, error)
            tilt = abs((i + 0.5) / count - (1.0 if error < 0 else 0.0))
            factor = coefficient * float(weight[b, t]) * tilt / (huber * count)
            loss += factor * size
            gradient[b, t, i] = -factor * slope
    return loss, gradient
