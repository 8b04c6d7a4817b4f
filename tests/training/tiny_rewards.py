"""Rewards of the tiny runs; they lie apart from what imports JAX, since reward workers import this module."""

import functools


def shortness(prompts, completions, **columns):
    """Between 0 and 1, more for a shorter completion."""
    return [1.0 / (1.0 + length) for length in columns["completion_length"]]


def always_right(prompts, completions, **columns):
    return [1.0] * len(completions)


def half(prompts, completions, **columns):
    """0.5 for an odd number of tokens, else 0: values that a cast to integers would lose."""
    return [0.5 * (length % 2) for length in columns["completion_length"]]


def few_right(prompts, completions, **columns):
    """1 for completions of at most 3 tokens, None where there are more than 9."""
    return [None if length > 9 else float(length <= 3) for length in columns["completion_length"]]


def moody(prompts, completions, **columns):
    """1, and no number for texts of an even number of characters."""
    return [1.0 if len(text) % 2 else "no mood" for text in completions]


def broken(prompts, completions, **columns):
    raise RuntimeError("no mood to judge")


def odd_text(prompts, completions, **columns):
    """1 for a text of an odd number of characters: a coin for every completion, whatever its length in tokens."""
    return [float(len(completion) % 2) for completion in completions]


def make_constant(value):
    """A reward with an option."""
    return functools.partial(_constant, value)


def _constant(value, prompts, completions, **columns):
    return [value] * len(completions)
