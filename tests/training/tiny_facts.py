"""Facts for the methods that ask for more than rewards, as a user would write them: by the text and the columns alone."""


def form(completions):
    """Number of the answer's format: whether it shows work, and -1 for an empty one."""
    return [-1 if not text else int("=" in text) for text in completions]


def calls(completions):
    """How often a tool is called: each "*" is a call."""
    return [text.count("*") for text in completions]


def first_call(completions):
    """Tokens before the first call; every token is a character here."""
    return [text.find("*") for text in completions]


def stratum(completions):
    """Rows with as many calls are compared with each other."""
    return [min(text.count("*"), 2) for text in completions]


def embedding(completions):
    """How often each digit stands in the text."""
    return [[float(text.count(str(digit))) for digit in range(10)] for text in completions]


def flawed(completions):
    """A text with two signs in a row is flawed."""
    return [int(any(pair in text for pair in ("++", "+-", "-+", "--"))) for text in completions]


def easy(prompts):
    """Probability that the prompt is easy."""
    return [0.75 if "1" in prompt else 0.25 for prompt in prompts]


def role(prompts):
    """Who speaks: the player of sums or that of differences."""
    return [int("-" in prompt) for prompt in prompts]


def digit_rewards(completions):
    """A tenth for each digit, at the digit."""
    return [[[place, place + 1, 0.1] for place, sign in enumerate(text) if sign.isdigit()] for text in completions]


def rank(completions):
    """The place of each text among those of its group, by length: of whole groups."""
    order = sorted(range(len(completions)), key=lambda row: len(completions[row]))
    return [order.index(row) for row in range(len(completions))]


rank.whole_groups = True


def missing_for_all(completions):
    """A mistake."""
    raise ValueError("no facts today")


def missing_for_some(completions):
    """Of every third row it says something that is no number."""
    return ["many" if row % 3 == 0 else 1 for row in range(len(completions))]
