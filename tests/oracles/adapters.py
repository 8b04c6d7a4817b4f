"""Adapters and quantised matrices straight from their papers, by plain loops in float64. Matrices are [inputs, outputs]."""

import statistics

import numpy as np


def lora(x, w, a, b, scale, cotangent):
    """https://arxiv.org/abs/2106.09685, section 4.1: h = x W + s x A B; and the gradient of sum(cotangent * h) by A and B."""
    h = x @ w + scale * (x @ a) @ b
    return h, scale * x.T @ cotangent @ b.T, scale * (x @ a).T @ cotangent


def dora(x, w, a, b, magnitude, scale, cotangent):
    """https://arxiv.org/abs/2402.09353, equation 5: W' = m (W + s A B) / ||W + s A B||, norms of columns.

    Gradients by A, B and m are those of section 4.3, equation 11, where the norm is a constant.
    """
    v = w + scale * a @ b
    changed, norm = np.zeros_like(w), np.zeros(w.shape[1])
    for column in range(w.shape[1]):
        norm[column] = np.sqrt(sum(entry**2 for entry in v[:, column]))
        changed[:, column] = magnitude[column] * v[:, column] / norm[column]
    by_matrix = x.T @ cotangent
    by_a = scale * (by_matrix * magnitude / norm) @ b.T
    by_b = scale * a.T @ (by_matrix * magnitude / norm)
    by_magnitude = np.array([by_matrix[:, c] @ v[:, c] / norm[c] for c in range(w.shape[1])])
    return x @ changed, by_a, by_b, by_magnitude


def normal_float_levels():
    """NF4, https://arxiv.org/abs/2305.14314, appendix E: quantiles of N(0, 1), eight above zero, zero, and seven below.

    The offset, the mean of 1 - 1/32 and 1 - 1/30, keeps the quantiles of 0 and 1 finite.
    """
    offset, quantile = (1 - 1 / 32 + 1 - 1 / 30) / 2, statistics.NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    levels = np.array(sorted([*above, 0.0, *below]))
    return levels / np.abs(levels).max()


def quantized(kind, w, block=64):
    """What a matrix becomes when it is kept as codes: the nearest levels times the largest entry of each block of inputs."""
    levels = {"int8": np.arange(-127, 128) / 127, "int4": np.arange(-7, 8) / 7, "nf4": normal_float_levels()}[kind]
    result = np.zeros_like(w)
    size = len(w) if kind == "int8" else block
    for start in range(0, len(w), size):
        for column in range(w.shape[1]):
            own = w[start : start + size, column]
            largest = np.abs(own).max()
            for row, entry in enumerate(own):
                nearest = 0.0 if largest == 0 else levels[np.argmin(np.abs(levels - entry / largest))]
                result[start + row, column] = nearest * largest
    return result
