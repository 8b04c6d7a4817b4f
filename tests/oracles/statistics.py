"""Statistics of a softmax over the vocabulary and their gradients by the logits, by plain loops in float64."""

import math

import numpy as np


def token_statistics(hidden, matrix, targets, temperature=1.0):
    """log p(target), entropy -sum p log p and mean log p of softmax(matrix @ hidden / temperature), each [N].

    Also their gradients by hidden [N, D] and by matrix [N, V, D], from d log p_y / dx_j = [j = y] - p_j,
    dH / dx_j = -p_j (log p_j + H) and d mean / dx_j = 1 / V - p_j.
    """
    tokens, size = len(targets), len(matrix)
    values = {name: np.zeros(tokens) for name in ("logp", "entropy", "mean_logp")}
    by_hidden = {name: np.zeros(hidden.shape) for name in values}
    by_matrix = {name: np.zeros((tokens, *matrix.shape)) for name in values}
    for n in range(tokens):
        x = [float(np.dot(matrix[j].astype(np.float64), hidden[n].astype(np.float64))) / temperature for j in range(size)]
        peak = max(x)
        normaliser = peak + math.log(sum(math.exp(value - peak) for value in x))
        log_p = [value - normaliser for value in x]
        entropy = -sum(math.exp(value) * value for value in log_p)
        values["logp"][n], values["entropy"][n], values["mean_logp"][n] = log_p[targets[n]], entropy, sum(log_p) / size
        for j in range(size):
            p = math.exp(log_p[j])
            slopes = {
                "logp": (1.0 if j == targets[n] else 0.0) - p,
                "entropy": -p * (log_p[j] + entropy),
                "mean_logp": 1.0 / size - p,
            }
            for name, slope in slopes.items():
                by_hidden[name][n] += slope / temperature * matrix[j]
                by_matrix[name][n, j] = slope / temperature * hidden[n]
    return values, by_hidden, by_matrix
