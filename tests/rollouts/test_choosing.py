"""Which prompts are drawn, and how often: rules by hand, and tables that follow what was seen."""

import dataclasses

import numpy as np
import pytest
from rollouts.test_hints import Hinted

from jaxrl_llm.rollouts import best_and_worst_of, chosen
from jaxrl_llm.rollouts.choosing import (
    by_acceptance,
    by_difficulty,
    domain_bandit,
    empty_table,
    evenly,
    in_turn,
    knapsack,
    seen,
    uncertainty,
    unsolved,
    variance_mix,
    worst_domain,
)  # fmt: skip
from jaxrl_llm.rollouts.io import Io

EXAMPLES = [{"prompt": "p", "domain": name, "difficulty": level} for name, level in zip("aabbcc", range(6), strict=True)]


def told(step=0):
    nothing = dict.fromkeys(("tokenizer", "policies", "sampling", "max_prompt_tokens", "seed"))
    return Io(**nothing, step=step, examples=EXAMPLES)


def table(success, visits=None, spread=None):
    count = len(success)
    return {
        "success": np.array(success, np.float32),
        "visits": np.full(count, 8) if visits is None else np.array(visits),
        "spread": np.zeros(count, np.float32) if spread is None else np.array(spread, np.float32),
        "variance": np.zeros(count, np.float32),
    }


def test_rules_of_prompts_by_hand():
    half = table([0.0, 0.5, 1.0, 0.9], visits=[8, 8, 8, 0])
    assert in_turn()(half, told()) is None
    np.testing.assert_allclose(uncertainty(epsilon=0.1)(half, told()), [0.1, 0.6, 0.1, 0.6], rtol=1e-6)
    np.testing.assert_allclose(variance_mix(share=0.5)(half, told()), [0.125, 0.375, 0.125, 0.375], rtol=1e-6)
    np.testing.assert_allclose(variance_mix()(table([0, 1, 1, 0]), told()), [0.25] * 4)
    np.testing.assert_allclose(unsolved()(half, told()), [1, 1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(unsolved(least=0.2)(half, told()), [0, 1, 0, 1], atol=1e-6)
    easy = by_difficulty(stages=((5, 3), (0, 1)))
    np.testing.assert_allclose(easy(table([0] * 6), told(4)), [1, 1, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(easy(table([0] * 6), told(5)), [1, 1, 1, 1, 0, 0], atol=1e-6)
    with pytest.raises(ValueError, match="stages is"):
        by_difficulty(stages=((5, 3),))(table([0] * 6), told(4))


def test_rules_of_domains_by_hand():
    known = table([0.5, 0.5, 0.1, 0.3, 0.9, 0.9], visits=[4, 4, 8, 8, 0, 0], spread=[0.5, 0.3, 0.1, 0.1, 0, 0])
    mean, rows, temperature = np.array([0.4, 0.1, 0.0]), np.array([8, 16, 0]), 0.5
    value = (mean + np.sqrt(2 * np.log(25) / (1 + rows))) / temperature
    share = np.exp(value) / np.exp(value).sum()
    np.testing.assert_allclose(domain_bandit(temperature=temperature)(known, told()), np.repeat(share / 2, 2), rtol=1e-5)
    np.testing.assert_allclose(worst_domain()(known, told()), [0, 0, 0, 0, 1, 1], atol=1e-6)
    known["visits"][4:] = 8
    np.testing.assert_allclose(worst_domain()(known, told()), [0, 0, 1, 1, 0, 0], atol=1e-6)


def test_columns_are_read_once_and_what_is_missing_is_named():
    io = told()
    assert io.column("domain") == list("aabbcc") and io.column("difficulty", float) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    io.examples = ()
    assert io.column("domain") == list("aabbcc")
    with pytest.raises(ValueError, match=r"example 0 has no 'topic', .* its columns are \['difficulty', 'domain', 'prompt'\]"):
        worst_domain(column="topic")(table([0] * 6), told())
    with pytest.raises(ValueError, match="the column 'domain' of example 0 is 'a'; give a float"):
        by_difficulty(stages=((0, 1.0),), column="domain")(table([0] * 6), told())


def best_of_all(success, total, least, most):
    """The largest sum of values by dynamic programming over prompts."""

    def value(n, p):
        return (1 - p**n - (1 - p) ** n) * p * (1 - p) ** 2

    best = {0: 0.0}
    for p in success:
        following = {}
        for used, worth in best.items():
            for n in range(least, most + 1):
                if used + n <= total:
                    following[used + n] = max(following.get(used + n, -1), worth + value(n, p))
        best = following
    return best[total]


def test_samples_are_shared_out_where_they_are_worth_most():
    success = np.array([0.1, 0.5, 0.9, 0.3])
    counts = knapsack(least=2, most=20)(success, np.ones(4, bool), 32)
    worth = sum((1 - p**n - (1 - p) ** n) * p * (1 - p) ** 2 for n, p in zip(counts, success, strict=True))
    assert counts.sum() == 32 and worth == pytest.approx(best_of_all(success, 32, 2, 20))
    # Nothing to gain anywhere: the rest goes to what was never solved.
    assert knapsack(least=2)(np.array([0.0, 1.0]), np.ones(2, bool), 10).tolist() == [8, 2]
    assert knapsack(least=1, most=3)(np.array([0.0, 0.0]), np.ones(2, bool), 6).tolist() == [3, 3]
    with pytest.raises(ValueError, match="most is 3; it must be at least 4"):
        knapsack(least=1, most=3)(np.array([0.0, 0.0]), np.ones(2, bool), 7)
    with pytest.raises(ValueError, match="least is 9; it must be at most 4"):
        knapsack(least=9)(np.array([0.5, 0.5]), np.ones(2, bool), 8)
    assert evenly()(success, None, 10).tolist() == [3, 3, 2, 2]
    chance = np.array([0.5, 0.05])
    weight = 1 / np.sqrt(chance + 1e-3 / chance)
    found = by_acceptance()(chance, np.ones(2, bool), 100)
    assert found.sum() == 100 and abs(found[1] - 1 - 98 * weight[1] / weight.sum()) <= 1


def test_tables_follow_what_was_seen():
    source = Hinted(lambda prompt, number, n: number == 1 or n == 0)
    source.examples = [{"prompt": str(number)} for number in range(3)]
    strategy = chosen(samples=4, examples=5, momentum=0.5)
    found, after, metrics = strategy.run(source, strategy.init(), 2)
    assert after["visits"].tolist() == [4, 4, 0, 0, 0] and after["success"].tolist() == [0.25, 1, 0, 0, 0]
    np.testing.assert_allclose(after["variance"][:2], [3 / 16, 0])
    np.testing.assert_allclose(after["spread"][:2], [3 / 8, 0])
    again = seen(after, dataclasses.replace(found, rollouts=found.rollouts.replace(rewards=0 * found.rollouts.rewards)), 0.5)
    assert again["success"].tolist() == [0.125, 0.5, 0, 0, 0] and again["visits"].tolist() == [8, 8, 0, 0, 0]
    assert metrics == {"chosen/success": 0.0, "chosen/largest": 4.0}
    small = chosen(samples=2, examples=1, draws=uncertainty())  # a table that is smaller than the source
    seen_weights = []
    source.drawing = lambda cursor, count, weights: (seen_weights.append(weights), source.drawn(0, count, None))[1]
    _, after, _ = small.run(source, small.init(), 2)
    assert len(seen_weights[0]) == 3 and after["visits"].tolist() == [2]
    with pytest.raises(ValueError, match="examples is 0"):
        empty_table(examples=0)


def test_best_worst_and_accepted_rows():
    source = Hinted(lambda prompt, number, n: [0.1, 0.9, 0.5, 0.2][n])
    found, _, _ = best_and_worst_of(samples=4).run(source, (), 2)
    np.testing.assert_allclose(found.rollouts.rewards[:, 0], [0.9, 0.1] * 2)
    source.seed = 3
    accepted, _, _ = best_and_worst_of(samples=4, by="acceptance", beta=1e-6).run(source, (), 1)
    np.testing.assert_allclose(accepted.rollouts.rewards[:, 0], [0.9, 0.5])
    with pytest.raises(ValueError, match="keep is 3"):
        best_and_worst_of(samples=4, keep=3).run(source, (), 1)
