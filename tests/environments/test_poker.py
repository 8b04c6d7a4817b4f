"""Kuhn poker: its payoffs, its programs, and how far strategies are from an equilibrium."""

import itertools

import pytest

from jaxrl_llm.environments import kuhn_poker
from jaxrl_llm.environments.poker import OVER, chances, exploitability, payoff


def value(bets, other, cards, history=""):
    """What the first player wins on average, by going through the tree; `bets` are the first player's chances."""
    if history in OVER:
        return payoff(cards, history)
    seat = len(history) % 2
    bet = (bets, other)[seat](cards[seat], history)
    return bet * value(bets, other, cards, history + "b") + (1 - bet) * value(bets, other, cards, history + "p")


def mean_value(bets, other):
    deals = list(itertools.permutations(range(3), 2))
    return sum(value(bets, other, cards) for cards in deals) / len(deals)


def program(name):
    return lambda card, history: chances(name, card, history)


def test_payoffs_are_those_of_the_game():
    king, jack = (2, 0), (0, 2)
    assert [payoff(king, own) for own in OVER] == [1, -1, 2, 1, 2]
    assert [payoff(jack, own) for own in OVER] == [-1, -1, -2, 1, -2]


def test_the_equilibrium_loses_an_eighteenth_and_cannot_be_exploited():
    assert mean_value(program("equilibrium"), program("equilibrium")) == pytest.approx(-1 / 18)
    assert exploitability(program("equilibrium")) == pytest.approx(0, abs=1e-12)


def test_exploitability_of_known_strategies():
    # The uniform strategy: half of 11/12, as game-theory libraries have it.
    assert exploitability(program("random")) == pytest.approx(11 / 24)
    best = max(
        mean_value(lambda card, history, plan=plan: plan[card, history], program("greedy"))
        for plan in (
            dict(zip(itertools.product(range(3), ("", "pb")), bits, strict=True))
            for bits in itertools.product((0, 1), repeat=6)
        )
    )
    second = max(
        -mean_value(program("greedy"), lambda card, history, plan=plan: plan[card, history])
        for plan in (
            dict(zip(itertools.product(range(3), ("p", "b")), bits, strict=True))
            for bits in itertools.product((0, 1), repeat=6)
        )
    )
    assert exploitability(program("greedy")) == pytest.approx((best + second) / 2)


def test_games_of_two_roles():
    game = kuhn_poker()
    state, prompt, role = game.reset({"number": 3}, 3)
    assert role == 0 and prompt[0] in "JQK" and prompt[1:] == "1:"
    first = game.step(state, "p")
    assert (first.role, first.done, first.reply[1:]) == (1, False, "2:p") and first.reply[0] != prompt[0]
    second = game.step(first.state, " b ")
    assert (second.role, second.reply) == (0, "b")
    last = game.step(second.state, "p")
    assert last.done and last.outcome == (-1.0, 1.0)
    lost = game.step(first.state, "hello")
    assert lost.done and lost.outcome == [0.0, -2.0] and lost.facts["illegal"] == 1
    assert game.step(first.state, "b") == game.step(first.state, "b")  # a state may be gone on from twice


def test_programs_play_both_seats():
    game, seats = kuhn_poker("greedy"), set()
    for seed in range(40):
        state, prompt = game.reset({"number": seed}, seed)
        seats.add(prompt[1])
        assert game.reset({"number": seed}, seed)[0] == state
        moved = game.step(state, "b")
        while not moved.done:
            moved = game.step(moved.state, "b")
        assert moved.reward in (-2.0, 1.0, 2.0)
    assert seats == {"1", "2"}
    with pytest.raises(ValueError, match="'wild'"):
        kuhn_poker("wild")
