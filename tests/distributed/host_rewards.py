"""Rewards for runs of several processes."""


def digits(prompts, completions, **columns):
    """Share of digits, of one row at a time."""
    return [sum(letter.isdigit() for letter in text) / (len(text) + 1) for text in completions]


digits.rowwise = True


def longest(prompts, completions, **columns):
    """Whether a completion is the longest of all: looks at all rows."""
    return [float(len(text) == max(map(len, completions))) for text in completions]
