"""Kuhn poker: the smallest game in which a player must bluff. Three cards, one each, an ante of one and one bet of one.

Source: Kuhn, "Simplified two-person poker" (1950). With the best play of both, the first player loses 1/18 a game.
"""

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxrl_llm.environments.base import Environment, Example, Transition

CARDS = "JQK"
PASS, BET = "p", "b"
OVER = ("pp", "pbp", "pbb", "bp", "bb")
ILLEGAL = -2.0  # the most that can be lost


class Game(NamedTuple):
    """A game under way."""

    cards: tuple[int, int]  # of the first and the second player, 0 to 2
    history: str = ""  # of PASS and BET
    seat: int = 0  # of the one who learns, where the other is a program
    seed: int = 0


def payoff(cards: tuple[int, int], history: str) -> float:
    """What the first player wins, in chips, at the end of a game."""
    higher = 1.0 if cards[0] > cards[1] else -1.0
    if history == "pbp":
        return -1.0
    if history == "bp":
        return 1.0
    return higher * (2.0 if history.endswith("bb") else 1.0)


def kuhn_poker(opponent: str = "") -> Environment:
    """The game as text: a prompt is card and seat, such as "K1:", a move the letter "p" or "b", a reply the move of the other.

    PASS is a check or a fold, BET a bet or a call. Another text than one of them loses two chips at once.

    Args:
      opponent: "" for a game of two roles; else a program that plays the other seat, the example's "number" saying which:
        "random", "greedy" (bets with the king and with nothing else) or "equilibrium" (of the family the one that never bluffs
        first).

    Raises ValueError: an opponent that is none.
    """
    if opponent and opponent not in OPPONENTS:
        raise ValueError(f"opponent is {opponent!r}; give one of {sorted(OPPONENTS)}, or '' for a game of two roles")
    if not opponent:
        return Environment(_deal, _move, roles=2)
    return Environment(functools.partial(_begin, opponent), functools.partial(_answer, opponent))


def chances(opponent: str, card: int, history: str) -> float:
    """Probability that the program bets."""
    return OPPONENTS[opponent](card, history)


def _greedy(card: int, history: str) -> float:
    return float(card == 2)


def _equilibrium(card: int, history: str) -> float:
    table = {"": (0.0, 0.0, 0.0), "p": (1 / 3, 0.0, 1.0), "b": (0.0, 1 / 3, 1.0), "pb": (0.0, 1 / 3, 1.0)}
    return table[history][card]


OPPONENTS: Mapping[str, Callable[[int, str], float]] = {
    "random": lambda card, history: 0.5, "greedy": _greedy, "equilibrium": _equilibrium
}  # fmt: skip


def _dealt(seed: int, seat: int = 0) -> Game:
    source = random.Random(seed)
    first, second = source.sample(range(3), 2)
    return Game((first, second), "", seat, source.getrandbits(32))


def _prompt(game: Game, seat: int) -> str:
    return f"{CARDS[game.cards[seat]]}{seat + 1}:{game.history}"


def _deal(example: Example, seed: int) -> tuple[Game, str, int]:
    game = _dealt(seed)
    return game, _prompt(game, 0), 0


def _move(game: Game, text: str) -> Transition:
    seat, move = len(game.history) % 2, text.strip()
    if move not in (PASS, BET):
        lost = [ILLEGAL if own == seat else 0.0 for own in range(2)]
        return Transition(game, done=True, outcome=lost, facts={"illegal": 1})
    game = game._replace(history=game.history + move)
    if game.history in OVER:
        won = payoff(game.cards, game.history)
        return Transition(game, done=True, outcome=(won, -won), facts={"illegal": 0})
    other = 1 - seat
    # The second player's first move comes with its card; who has spoken before reads the other's move alone.
    reply = _prompt(game, other) if len(game.history) == 1 else move
    return Transition(game, reply, role=other, facts={"illegal": 0, "state": _prompt(game, other)})


def _begin(opponent: str, example: Example, seed: int) -> tuple[Game, str]:
    game = _dealt(seed, int(example.get("number", seed)) % 2)
    game = _played(opponent, game) if game.seat == 1 else game
    return game, _prompt(game, game.seat)


def _played(opponent: str, game: Game) -> Game:
    """The game after a move of the program, whose chance depends on the deal and the moves alone."""
    source = random.Random(f"{game.seed} {game.history}")
    bets = source.random() < chances(opponent, game.cards[1 - game.seat], game.history)
    return game._replace(history=game.history + (BET if bets else PASS))


def _answer(opponent: str, game: Game, text: str) -> Transition:
    move = text.strip()
    if move not in (PASS, BET):
        return Transition(game, reward=ILLEGAL, done=True, facts={"illegal": 1})
    game = game._replace(history=game.history + move)
    game = game if game.history in OVER else _played(opponent, game)
    if game.history in OVER:
        won = payoff(game.cards, game.history)
        return Transition(game, reward=won if game.seat == 0 else -won, done=True, facts={"illegal": 0})
    return Transition(game, game.history[-1], facts={"illegal": 0, "state": _prompt(game, game.seat)})


def exploitability(bets: Callable[[int, str], float]) -> float:
    """What two best answers to a strategy win on average, a game in each seat, in chips: 0 for an equilibrium.

    Args:
      bets: `(card, history) -> probability` of a bet, for the seat whose turn it is by the length of the history.
    """
    return sum(_best_answer(seat, bets) for seat in range(2)) / 2


def _best_answer(seat: int, bets: Callable[[int, str], float]) -> float:
    """The most that a player of that seat wins on average against `bets`."""
    return sum(_value(seat, card, _others(card), "", bets) for card in range(3)) / 3


def _others(card: int) -> dict[int, float]:
    return {other: 0.5 for other in range(3) if other != card}


def _value(seat: int, card: int, others: Mapping[int, float], history: str, bets: Callable[[int, str], float]) -> float:
    """Expected chips of a best player, times the probability of what the other may hold having come so far."""
    if history in OVER:
        sign = 1.0 if seat == 0 else -1.0
        cards: Sequence[Any] = [(card, other) if seat == 0 else (other, card) for other in others]
        return sum(sign * payoff(dealt, history) * reach for dealt, reach in zip(cards, others.values(), strict=True))
    if len(history) % 2 == seat:
        return max(_value(seat, card, others, history + move, bets) for move in (PASS, BET))
    betting = {other: reach * bets(other, history) for other, reach in others.items()}
    passing = {other: reach - betting[other] for other, reach in others.items()}
    return _value(seat, card, betting, history + BET, bets) + _value(seat, card, passing, history + PASS, bets)
