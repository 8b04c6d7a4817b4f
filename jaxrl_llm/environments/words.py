"""Guessing a word from what is said of each guess."""

import functools
import random
from collections.abc import Sequence
from typing import NamedTuple

from jaxrl_llm.environments.base import Environment, Example, Transition

RIGHT, ELSEWHERE, ABSENT = "+", "?", "-"
_WORDS = """apple beach brick chair cloud dance eagle earth flame fruit giant grape heart honey horse house juice knife lemon
light magic money mouse music night ocean olive piano plant queen river robot sheep snake stone storm sugar table tiger train
uncle water whale wheel zebra"""


class Secret(NamedTuple):
    """The word and the guesses so far."""

    word: str
    guesses: tuple[str, ...] = ()


def word_game(words: Sequence[str] = (), guesses: int = 6, partial: float = 0.0) -> Environment:
    """A word of `words` is to be found; of each guess the reply says letter by letter "+", "?" (stands elsewhere) or "-".

    The last word of a turn is the guess; another length than the secret's is answered by "!" and counts as a guess. Finding it
    gives 1 and ends the game.

    Args:
      words: to choose from, all of one length; a list of English words of five letters by default. The example's "word" is
        taken where it has one.
      guesses: most guesses.
      partial: reward at the end without success, times the share of letters that stand right in the best guess.

    Raises ValueError: no words, words of several lengths, or fewer than one guess.
    """
    chosen = tuple(words) or tuple(_WORDS.split())
    if len({len(word) for word in chosen}) != 1 or not chosen[0] or guesses < 1:
        raise ValueError(
            f"words have the lengths {sorted({len(word) for word in chosen})}, guesses is {guesses}; give one length"
        )
    return Environment(functools.partial(_begin, chosen), functools.partial(_step, guesses, partial))


def judged(word: str, guess: str) -> str:
    """What is said of a guess of the word's length; a letter that the word has once is found once."""
    left = [own for own, said in zip(word, guess, strict=True) if own != said]
    found = []
    for own, said in zip(word, guess, strict=True):
        if own == said:
            found.append(RIGHT)
        elif said in left:
            left.remove(said)
            found.append(ELSEWHERE)
        else:
            found.append(ABSENT)
    return "".join(found)


def _begin(words: tuple[str, ...], example: Example, seed: int) -> tuple[Secret, str]:
    secret = Secret(str(example.get("word") or random.Random(seed).choice(words)))
    return secret, f"{len(secret.word)}:"


def _step(guesses: int, partial: float, secret: Secret, text: str) -> Transition:
    guess = (text.split() or [""])[-1].lower()
    secret = secret._replace(guesses=(*secret.guesses, guess))
    if guess == secret.word:
        return Transition(secret, reward=1.0, done=True, facts={"guesses": len(secret.guesses)})
    fits = len(guess) == len(secret.word)
    reply = f" {judged(secret.word, guess) if fits else '!'}\n"
    over = len(secret.guesses) >= guesses
    reward = partial * _best(secret) if over else 0.0
    state = " ".join(f"{own}{judged(secret.word, own) if len(own) == len(secret.word) else '!'}" for own in secret.guesses)
    return Transition(secret, reply, reward=reward, done=over, facts={"guesses": len(secret.guesses), "state": state})


def _best(secret: Secret) -> float:
    """Largest share of letters that stand right in a guess."""
    fitting = [guess for guess in secret.guesses if len(guess) == len(secret.word)]
    return max((judged(secret.word, guess).count(RIGHT) for guess in fitting), default=0) / len(secret.word)
