"""Rewards that configurations of the tests name."""


def shortness(prompts, completions, **columns):
    """Between 0 and 1, more for a shorter completion."""
    return [1.0 / (1.0 + length) for length in columns["completion_length"]]
