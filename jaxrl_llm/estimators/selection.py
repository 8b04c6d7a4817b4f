"""Which rows and tokens of a step are learnt from, and what objectives want to know of whole rows."""

import jax
import jax.numpy as jnp

from jaxrl_llm.compose import require
from jaxrl_llm.estimators.base import no_steps, stateful, stateless
from jaxrl_llm.estimators.pools import group_bounds, group_mean, group_range, group_rank, group_sum
from jaxrl_llm.estimators.scores import row_logp, row_mean, row_scores, set_row_advantage
from jaxrl_llm.numerics import masked, materialised, safe_divide
from jaxrl_llm.types import Rollouts

KEPT = ("best_and_random", "best_and_worst", "best")
EMPHASES = ("power", "largest", "largest_and_random")


def extremes(rollouts: Rollouts, score, present):
    """The best and the worst present row of each group, as masks [N]; they are one row in a group of one.

    Of several best rows it is the likeliest, of several worst ones the least likely under the policy that sampled, by sums of
    `behavior_logp`; rows that are alike in this too are told apart by their number.
    """
    rows = jnp.arange(score.shape[0])
    place = jnp.zeros_like(rows).at[jnp.lexsort((rows, row_logp(rollouts), score, rollouts.group))].set(rows)
    first, last = group_bounds(place, present, rollouts.group)
    return (place == last) & (present > 0), (place == first) & (present > 0)


@stateful()
def policy_filtration(rollouts, state, key, *, keep: str = "best_and_random", reward_weights: tuple[float, ...] | None = None):
    """Keeps two rows of each group, or one: those whose rewards a reward model can be trusted with.

    Args:
      keep: "best_and_random" (the best and one of the others, drawn from the key), "best_and_worst", or "best".

    Raises ValueError: an unknown kind of rows.
    Source: PF-PPO, https://arxiv.org/abs/2409.06957
    """
    require(keep in KEPT, "keep", keep, f"one of {KEPT}")
    score, present = row_scores(rollouts, reward_weights)
    best, worst = extremes(rollouts, score, present)
    if keep == "best_and_random":
        others = present * ~best
        luck = jax.random.uniform(key, score.shape)
        worst = (luck == group_bounds(luck, others, rollouts.group)[1]) & (others > 0)
    kept = best if keep == "best" else best | worst
    return rollouts.replace(valid=rollouts.valid * kept), state


@stateful()
def resample_by_score(
    rollouts, state, key, *, emphasis: str = "power", power: float | None = None,
    reward_weights: tuple[float, ...] | None = None,
):  # fmt: skip
    """Draws as many rows as there are, with replacement, by their scores: `weight` is multiplied by how often a row was drawn.

    It stands behind the estimator that sets the weights.

    Args:
      emphasis: the chance of a row is in proportion to |R|^power ("power"), or to 1 for the rows of the step with the
        highest and the lowest score and 0 for others ("largest"), or to 0.4 for those with the highest score and 0.1 for
        others ("largest_and_random").
      power: of the score, for the emphasis "power"; None for 2.

    Raises ValueError: an unknown emphasis, or a power for another one than "power".
    Source: PF-PPO in verl, compute_pf_ppo_reweight_data, https://github.com/verl-project/verl
    """
    require(emphasis in EMPHASES, "emphasis", emphasis, f"one of {EMPHASES}")
    if power is not None and emphasis != "power":
        raise ValueError(f"power is {power}, which the emphasis {emphasis!r} does not read; leave it out")
    score, present = row_scores(rollouts, reward_weights)
    everything = jnp.zeros_like(rollouts.group)
    low, high = group_bounds(score, present, everything)
    chance = {
        "power": jnp.abs(score) ** (2.0 if power is None else power) + 1e-8,
        "largest": ((score == low) | (score == high)).astype(jnp.float32),
        "largest_and_random": jnp.where(score == high, 0.4, 0.1),
    }[emphasis]
    rows = score.shape[0]
    drawn = jax.random.categorical(key, jnp.log(masked(chance, present)), shape=(rows,))
    # Draws beyond the number of present rows do not count.
    counts = jnp.zeros(rows).at[drawn].add(1.0 * (jnp.arange(rows) < present.sum()))
    return rollouts.replace(weight=rollouts.weight * (present * counts)[:, None]), state


@stateful()
def drop_surplus_negatives(rollouts, state, key):
    """Leaves in each group at most as many rows with a negative mean advantage as with a positive one, drawn from the key.

    Source: RED-Drop, https://arxiv.org/abs/2509.24203
    """
    advantage, present = row_mean(rollouts.advantage, rollouts.mask), (rollouts.valid > 0).astype(jnp.float32)
    positive, negative = (present * side for side in (advantage > 0, advantage < 0))
    luck = jax.random.uniform(key, advantage.shape)
    rank = group_rank(luck, negative, rollouts.group)
    surplus = (negative > 0) & (rank >= group_sum(positive, rollouts.group))
    return rollouts.replace(valid=rollouts.valid * ~surplus), state


@stateful(no_steps, annotations=("proximal_entropy",))
def down_sample(
    rollouts, steps, key, *, rows: tuple[float, float] = (0.5, 1.0), tokens: tuple[float, float] = (0.5, 1.0), steps_total: int
):
    """Keeps the rows of the step whose advantages vary most, and of these the tokens with the largest |A| * entropy.

    Of n rows, ceil(share * n) are kept: the i with the largest and the others with the smallest advantages, with that i
    that makes their variance largest. Then as many tokens, ceil(share * m) of the m in these rows, as equal values allow.
    Shares go along a line from the first to the second entry of `rows` and `tokens` within `steps_total` steps.

    Args:
      rollouts: with one advantage a row, and `extras["proximal_entropy"]` [N, T] in nats.
      rows: share of rows at the start and at the end.
      tokens: share of tokens at the start and at the end.
      steps_total: steps from one to the other.

    Raises ValueError: shares that are not in (0, 1], or `steps_total` below 1.
    Source: D3S, https://arxiv.org/abs/2509.22115
    """
    for name, shares in (("rows", rows), ("tokens", tokens)):
        require(all(0 < share <= 1 for share in shares), name, shares, "two shares above 0 and at most 1")
    require(steps_total >= 1, "steps_total", steps_total, "at least 1")
    way = jnp.minimum(steps / steps_total, 1.0)
    share_of_rows, share_of_tokens = (first + (last - first) * way for first, last in (rows, tokens))
    advantage = row_mean(rollouts.advantage, rollouts.mask)
    kept = _most_varied(advantage, row_logp(rollouts), rollouts.valid > 0, share_of_rows)
    taken = rollouts.mask * kept[:, None]
    merit = jnp.abs(masked(rollouts.advantage * rollouts.extras["proximal_entropy"], taken))
    mask = rollouts.mask * _largest(merit, taken, share_of_tokens)
    return rollouts.replace(mask=mask, advantage=masked(rollouts.advantage, mask), valid=rollouts.valid * kept), steps + 1


def _count(share, whole):
    """ceil(share * whole), where rounding shall not make 0.5 * 4 a little more than 2."""
    return jnp.ceil(share * whole - 1e-4)


def _most_varied(values, tie, present, share):
    """The rows [N] that `down_sample` keeps: first and last ones in the order of values, and of `tie` among equal ones."""
    number, size = present.sum(), values.shape[0]
    wanted = _count(share, number)
    order = jnp.lexsort((tie, values, ~present))
    ranked = jnp.where(jnp.arange(size) < number, values[order], 0.0)
    sums, squares = (jnp.concatenate([jnp.zeros(1), jnp.cumsum(x)]) for x in (ranked, jnp.square(ranked)))
    low = jnp.arange(size + 1)
    start = jnp.clip(number - (wanted - low), 0, number).astype(jnp.int32)
    moments = [part[low] + part[number] - part[start] for part in (sums, squares)]
    variance = safe_divide(moments[1], wanted) - jnp.square(safe_divide(moments[0], wanted))
    best = jnp.argmax(jnp.where(low <= wanted, variance, -jnp.inf))
    rank = jnp.zeros(size, jnp.int32).at[order].set(jnp.arange(size))
    return (present & ((rank < best) | (rank >= start[best]))).astype(jnp.float32)


def _largest(values, taken, share):
    """Where `values` are among the largest `share` of those that are taken; all that equal the last of them are."""
    values, wanted = materialised(values), _count(share, taken.sum()).astype(jnp.int32)
    ranked = jnp.sort(jnp.where(taken > 0, values, -jnp.inf).ravel(), descending=True)
    return taken * (values >= ranked[jnp.maximum(wanted - 1, 0)])


@stateless
def drop_uniform_groups(rollouts: Rollouts, *, reward_weights: tuple[float, ...] | None = None) -> Rollouts:
    """Takes groups whose present rows all have one score out of the training: they carry no signal.

    Groups of one are uniform. If nothing is left, all weights become 0 and the step changes nothing.

    Source: DAPO dynamic sampling, https://arxiv.org/abs/2503.14476
    """
    score, present = row_scores(rollouts, reward_weights)
    informative = group_range(score, present, rollouts.group) > 0
    return rollouts.replace(valid=rollouts.valid * present * informative)


@stateless(annotations=("feasible",))
def drop_infeasible(rollouts: Rollouts) -> Rollouts:
    """Takes rows out of the training that are not feasible, `extras["feasible"]` [N] being 0, such as those out of format.

    What is left samples the policy cut to feasible answers, whose gradient is that of `objectives.truncated_policy`.

    Source: rejection in TabNAS, https://arxiv.org/abs/2204.07615
    """
    return rollouts.replace(valid=rollouts.valid * (rollouts.extras["feasible"] > 0))


@stateful(lambda **options: {"mean": jnp.zeros(()), "share": jnp.zeros(())})
def moving_average_advantage(
    rollouts: Rollouts, state, key, *, decay: float = 0.9, reward_weights: tuple[float, ...] | None = None
):
    """A = score - b, b the exponential average of the mean scores of the steps before, without bias to its beginning.

    b is 0 in the first step. Steps without any score leave the average as it is.

    Args:
      decay: share of the average that each step keeps, from 0 up to 1.

    Raises ValueError: a decay that is not from 0 up to 1.
    Source: REINFORCE with a moving baseline, https://doi.org/10.1007/BF00992696
    """
    require(0 <= decay < 1, "decay", decay, "from 0 up to 1")
    score, present = row_scores(rollouts, reward_weights)
    baseline = safe_divide(state["mean"], state["share"])
    new = {"mean": safe_divide(masked(score, present).sum(), present.sum()), "share": jnp.ones(())}
    moved = {name: decay * state[name] + (1.0 - decay) * new[name] for name in state}
    kept = {name: jnp.where(present.sum() > 0, moved[name], state[name]) for name in state}
    return set_row_advantage(rollouts, score - baseline, present), kept


@stateless(provides=("score", "correct", "accuracy"))
def row_statistics(rollouts: Rollouts, *, threshold: float = 0.5, reward_weights: tuple[float, ...] | None = None) -> Rollouts:
    """Adds the total reward of each row, whether it is correct, and the share of correct rows in its group.

    `extras["score"]` [N]; `extras["correct"]` [N], 1 where the score is above `threshold`; `extras["accuracy"]` [N], the mean
    of it over the present rows of the group. All are 0 for rows without any reward, except for the accuracy of their group.
    """
    score, present = row_scores(rollouts, reward_weights)
    score = masked(score, present)
    correct = present * (score > threshold)
    accuracy = group_mean(correct, present, rollouts.group)
    return rollouts.replace(extras={**rollouts.extras, "score": score, "correct": correct, "accuracy": accuracy})


@stateless(provides=("preference",))
def best_and_worst(rollouts: Rollouts, *, reward_weights: tuple[float, ...] | None = None) -> Rollouts:
    """Makes a pair of each group: `extras["preference"]` [N] is 1 for its best row, -1 for its worst one, 0 elsewhere.

    Groups whose present rows all have one score give no pair. Of several best or worst rows, the best is the likeliest one and
    the worst the least likely under the policy that sampled, by sums of `behavior_logp`; rows that are alike in this too are
    told apart by their number, which only matters where they are the same text.

    Source: online DPO, https://arxiv.org/abs/2402.04792; best against worst: https://arxiv.org/abs/2404.03715
    """
    score, present = row_scores(rollouts, reward_weights)
    best, worst = extremes(rollouts, score, present)
    differ = group_range(score, present, rollouts.group) > 0
    preference = jnp.where(differ, 1.0 * best - worst, 0.0)
    return rollouts.replace(extras={**rollouts.extras, "preference": preference})
