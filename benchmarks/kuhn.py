"""How far a policy is from an equilibrium of Kuhn poker, and what it wins against programs: python benchmarks/kuhn.py RUN

`python benchmarks/kuhn.py RUN RUN/modules/opponent` takes the second player's moves from another policy.

Reads the probabilities of the two moves in the twelve situations of the game, and prints the strategy, its exploitability in
chips a game (0 for an equilibrium, 11/24 for moves at random) and what it wins on average against each program, in both seats.
"""

import itertools
import sys

import jax.numpy as jnp

from jaxrl_llm.environments.poker import BET, CARDS, OPPONENTS, OVER, PASS, chances, exploitability, payoff
from jaxrl_llm.training.policies import load_policy

SITUATIONS = {"": "1:", "p": "2:p", "b": "2:b", "pb": "1:pb"}  # history -> what is read behind the card


def strategy_of(network, tokenizer):
    """`(card, history) -> probability of a bet`, and the least probability of a legal move."""
    table, legal = {}, 1.0
    moves = [tokenizer.encode(move)[0] for move in (BET, PASS)]
    for card, (history, text) in itertools.product(range(3), SITUATIONS.items()):
        ids = tokenizer.encode(CARDS[card] + text)
        logits = network.apply(network.params, jnp.array([ids]), jnp.arange(len(ids))[None], jnp.ones((1, len(ids)), int))
        shares = jnp.exp(logits[0, -1] - logits[0, -1].max())
        bet, other = (float(shares[move]) for move in moves)
        legal = min(legal, (bet + other) / float(shares.sum()))
        table[card, history] = bet / (bet + other)
    return (lambda card, history: table[card, history]), legal


def value(first, second, cards, history=""):
    """What the first player wins on average at this deal."""
    if history in OVER:
        return payoff(cards, history)
    seat = len(history) % 2
    bet = (first, second)[seat](cards[seat], history)
    return bet * value(first, second, cards, history + BET) + (1 - bet) * value(first, second, cards, history + PASS)


def mean_value(own, other):
    """What `own` wins on average over all deals and both seats."""
    deals = list(itertools.permutations(range(3), 2))
    return sum(value(own, other, cards) - value(other, own, cards) for cards in deals) / (2 * len(deals))


def main(folder: str, second: str = "") -> None:
    """Prints what there is to say of the policy in a folder, or of it as first and another one as second player."""
    own, legal = strategy_of(*load_policy(folder))
    if second:
        players = own, strategy_of(*load_policy(second))[0]
        own = lambda card, history: players[len(history) % 2](card, history)  # noqa: E731
    for history, text in SITUATIONS.items():
        print(f"bets at {text:5}", {CARDS[card]: round(own(card, history), 3) for card in range(3)})
    print("least probability of a legal move", round(legal, 4))
    print("exploitability", round(exploitability(own), 4), "(moves at random: 0.4583)")
    for name in OPPONENTS:
        print(f"wins against {name}", round(mean_value(own, lambda card, history, name=name: chances(name, card, history)), 4))


if __name__ == "__main__":
    main(*sys.argv[1:])
