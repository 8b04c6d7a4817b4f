"""Values of prompts from the rewards of a reference policy."""

import math


def optimal_value(rewards, *, beta):
    """beta log mean exp(r / beta) of each row."""
    return [beta * math.log(sum(math.exp(float(r) / beta) for r in row) / len(row)) for row in rewards]
