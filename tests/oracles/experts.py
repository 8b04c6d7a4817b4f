"""Mixtures of experts and the losses on their routers, by plain loops in float64."""

import numpy as np


def softmax(x):
    exponential = np.exp(x - x.max())
    return exponential / exponential.sum()


def choose(logits, k, *, score="softmax", bias=None, groups=1, top_groups=1, normalize=False, scale=1.0, forced=None):
    """Experts and weights of one token."""
    logits = np.asarray(logits, np.float64)
    count = len(logits)
    scores = softmax(logits) if score == "softmax" else 1 / (1 + np.exp(-logits))
    preference = scores + (0 if bias is None else bias)
    size = count // groups
    strength = [sum(sorted(preference[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
    best = sorted(range(groups), key=lambda g: -strength[g])[:top_groups]
    allowed = [e for e in range(count) if e // size in best]
    experts = sorted(allowed, key=lambda e: -preference[e])[:k]
    if forced is not None:
        experts = [e if f < 0 else f for e, f in zip(experts, forced, strict=True)]
    weights = np.array([scores[e] for e in experts])
    if normalize:
        weights = weights / weights.sum()
    return experts, scale * weights


def mixture(x, experts, weights, gate, up, down):
    """Sum of weight * SwiGLU MLP of one token."""
    total = np.zeros(down.shape[-1])
    for expert, weight in zip(experts, weights, strict=True):
        inner = x @ gate[expert]
        total += weight * ((inner / (1 + np.exp(-inner)) * (x @ up[expert])) @ down[expert])
    return total


def load_balancing(logits, weight, k, pooled=True):
    """E * sum f_e P_e for logits [n, layers, E] of n actions with weights [n]; times the sum of the weights."""
    n, layers, count = logits.shape
    share = weight / weight.sum()
    total = 0.0
    used, mean = np.zeros((layers, count)), np.zeros((layers, count))
    for t in range(n):
        for layer in range(layers):
            mean[layer] += share[t] * softmax(logits[t, layer])
            for expert in np.argsort(-logits[t, layer], kind="stable")[:k]:
                used[layer, expert] += share[t]
    if pooled:
        total = count * (used.mean(axis=0) * mean.mean(axis=0)).sum()
    else:
        total = np.mean([count * (used[layer] * mean[layer]).sum() for layer in range(layers)])
    return weight.sum() * total


def router_z(logits, weight):
    total = 0.0
    for t, layers in enumerate(logits):
        total += weight[t] * np.mean([np.log(np.exp(x).sum()) ** 2 for x in layers])
    return total
