"""What libraries mean by a name, pinned by numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import methods
from jaxrl_llm.methods.base import When
from jaxrl_llm.types import Batch, Rollouts, Scores

# Two prompts with four answers of 1, 2, 3 and 4 tokens.
REWARDS = np.array([1, 0, 0, 0, 1, 1, 1, 0], np.float32)
LENGTHS = np.array([1, 2, 3, 4] * 2, np.int32)
MASK = (np.arange(4) < LENGTHS[:, None]).astype(np.float32)


def estimated(name, convention, reference=None, **options):
    method = methods.get(name, convention=convention, **options)
    rollouts = Rollouts(
        tokens=np.zeros((8, 4), np.int32),
        length=LENGTHS,
        mask=MASK,
        rewards=REWARDS[:, None],
        group=np.arange(8, dtype=np.int32) // 4,
        behavior_logp=-MASK,
        extras={"reference_logp": -MASK if reference is None else reference, "greedy_reward": np.float32(0.25 * (REWARDS + 1))},
    )
    return method.estimator.update(rollouts, method.estimator.init(), jax.random.key(0))[0]


def slope(name, convention, ratio, advantage, **options):
    """d loss / d logp of one token with that ratio and advantage; the policy before the step is the sampler."""
    objective = methods.get(name, convention=convention, **options).objective
    batch = Batch(
        tokens=jnp.zeros((1, 2), jnp.int32), mask=jnp.array([[0.0, 1.0]]), behavior_logp=jnp.array([[0.0, -2.0]]),
        reference_logp=jnp.array([[0.0, -1.5]]), advantage=jnp.array([[0.0, advantage]]),
        extras={"proximal_logp": jnp.array([[0.0, -2.0]])},
    )  # fmt: skip
    logp = jnp.array([[0.0, -2.0 + np.log(ratio)]])
    return float(jax.grad(lambda logp: objective(Scores(logp=logp), batch)[0])(logp)[0, 1])


POPULATION, BESSEL = np.sqrt(3) / 4, 0.5  # of the rewards 1 0 0 0
TRL, VERL = 0.75 / (BESSEL + 1e-4), 0.75 / (BESSEL + 1e-6)
OF_OTHERS = np.sqrt(1 / 3)  # Bessel's deviation of 1 0 0
# Advantages 3/4 -1/4 -1/4 -1/4 and 1/4 1/4 1/4 -3/4 at 1, 2, 3 and 4 tokens each: mean -0.15, variance 3.75 / 20 - 0.15^2.
CENTRED = 0.165
# The first advantage of the rewards 1 0 0 0, beside 1 1 1 0.
ADVANTAGES = {
    ("grpo", "paper"): 0.75 / (POPULATION + 1e-6),
    ("grpo", "trl-1.16"): TRL,
    ("grpo", "verl-0.10"): VERL,
    ("grpo", "openrlhf"): 0.75 / (BESSEL + 1e-9),
    ("grpo", "tunix-0.1"): 0.75 / (BESSEL + 1e-6),
    ("grpo", "oat"): 0.75 / (BESSEL + 1e-8),
    ("grpo", "nemo-rl"): 1.0,  # 1 - mean of 0 0 0, which have no deviation
    ("grpo", "pipeline-rl"): 1.0 / (BESSEL + 1e-4),
    ("grpo", "areal"): 0.5 / (0.5 + 1e-6),
    ("dr_grpo", "trl-1.16"): TRL,
    ("dr_grpo", "verl-0.10"): 0.75,
    ("dr_grpo", "tunix-0.1"): 0.75,
    ("dr_grpo", "openrlhf"): 0.75,
    ("dapo", "trl-1.16"): TRL,
    ("dapo", "verl-0.10"): 0.75 / (BESSEL + 1e-6),
    ("dapo", "tunix-0.1"): 0.75 / (BESSEL + 1e-6),
    ("gspo", "trl-1.16"): TRL,
    ("gspo", "verl-0.10"): VERL,
    ("gspo", "nemo-rl"): 1.0,
    ("gspo", "openrlhf"): 0.75 / (BESSEL + 1e-9),
    ("gspo_token", "tunix-0.1"): 0.75 / (BESSEL + 1e-6),
    ("cispo", "trl-1.16"): TRL,
    ("cispo", "verl-0.10"): VERL,
    ("cispo", "nemo-rl"): 1.0,
    ("cispo", "skyrl"): 0.75 / (BESSEL + 1e-6),
    ("cispo", "open-instruct"): 0.75 / (POPULATION + 1e-6),
    ("luspo", "trl-1.16"): TRL,
    ("gmpo", "trl-1.16"): TRL,
    ("gmpo", "verl-0.10"): VERL,
    ("vespo", "trl-1.16"): TRL,
    ("sapo", "trl-1.16"): TRL,
    ("sapo", "verl-0.10"): VERL,
    ("dppo", "verl-0.10"): VERL,
    ("dppo", "prime-rl"): 0.75,
    ("clip_cov", "verl-0.10"): VERL,
    ("kl_cov", "verl-0.10"): VERL,
    ("forking_tokens", "trl-1.16"): TRL,
    ("tis", "trl-1.16"): TRL,
    ("tis", "verl-0.10"): VERL,
    ("tis", "openrlhf"): 0.75 / (BESSEL + 1e-9),
    ("icepop", "trl-1.16"): TRL,
    ("icepop", "verl-0.10"): VERL,
    ("icepop", "openrlhf"): 0.75 / (BESSEL + 1e-9),
    ("deepseek_v32", "trl-1.16"): TRL,
    ("skywork", "trl-1.16"): TRL,
    ("dro", "verl-0.10"): VERL,
    ("lite_ppo", "trl-1.16"): 0.75 / (np.sqrt(8 * 0.25 / 7) + 1e-4),  # of all eight rewards
    ("opo", "verl-0.10"): 1 - 1 / 10,  # one of ten tokens has the reward 1
    ("gpg", "verl-0.10"): 0.75 * 8 / 4,  # four of eight rewards are not 0
    ("grpo_passk", "verl-0.10"): 1.0 / (BESSEL + 1e-6),
    ("rloo", "trl-1.16"): 1.0,
    ("rloo", "verl-0.10"): 1.0,
    ("rloo", "openrlhf"): 1.0,
    ("rloo", "tunix-0.1"): 1.0,
    ("remax", "verl-0.10"): 1.0 - 0.5,
    # 7 of 20 tokens have the return 1: mean 0.35, variance 0.35 * 0.65.
    ("reinforce_plus_plus", "verl-0.10"): 0.65 / np.sqrt(0.2275 * 20 / 19),
    ("reinforce_plus_plus", "openrlhf"): 0.65 / np.sqrt(0.2275),
    ("reinforce_plus_plus_baseline", "verl-0.10"): 0.9 / np.sqrt(CENTRED * 20 / 19),
    ("reinforce_plus_plus_baseline", "nemo-rl"): 0.9 / np.sqrt(CENTRED),
    ("reinforce_plus_plus_baseline", "openrlhf"): 0.9 / np.sqrt(CENTRED),
    # Squares of both groups sum to 2 * 0.75; 8 - 1 rows.
    ("gdpo", "trl-1.16"): TRL / (np.sqrt(1.5 / 7) / (BESSEL + 1e-4) + 1e-4),
    ("gdpo", "verl-0.10"): 0.9 / np.sqrt(CENTRED * 20 / 19),
    ("gdpo", "nemo-rl"): 0.75 / np.sqrt(1.5 / 7),
}
BY_SEQUENCE = {
    ("grpo", "paper"), ("grpo", "tunix-0.1"), ("grpo", "oat"), ("gspo", "verl-0.10"), ("gspo", "nemo-rl"),
    ("gspo", "openrlhf"), ("gspo_token", "tunix-0.1"), ("gmpo", "trl-1.16"), ("gmpo", "verl-0.10"), ("sapo", "trl-1.16"),
    ("sapo", "verl-0.10"), ("rloo", "trl-1.16"), ("rloo", "tunix-0.1"),
}  # fmt: skip
SUMMED = {("grpo", "pipeline-rl"), ("luspo", "trl-1.16")}
# Conventions whose numbers are pinned by a test of their own.
ELSEWHERE = {
    ("gtpo", "authors-code"),
    ("gkd", "trl-1.16"), ("otb", "verl-0.10"), ("ppo", "verl-0.10"), ("ppo", "openrlhf"), ("ppo", "tunix-0.1"),
    ("kto", "trl-1.16"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "convention"), ADVANTAGES)
def test_advantages(name, convention):
    found = estimated(name, convention).advantage
    np.testing.assert_allclose(found[0, 0], ADVANTAGES[name, convention], rtol=1e-5)
    assert not found[MASK == 0].any()


@pytest.mark.parametrize(("name", "convention"), ADVANTAGES)
def test_shares(name, convention):
    weight = np.asarray(estimated(name, convention).weight)
    expected = MASK / MASK.sum()
    if (name, convention) in BY_SEQUENCE:
        expected = MASK / LENGTHS[:, None] / 8
    elif (name, convention) in SUMMED:
        expected = MASK / 8
    elif name == "dr_grpo" and convention != "openrlhf":
        expected = MASK / 3000 / 8
    np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_each_convention_is_pinned():
    every = {(name, convention) for name in methods.names() for convention in methods.conventions_of(name)}
    named = {pair for pair in every if pair[1] != "paper"}
    assert named == (set(ADVANTAGES) | set(PAIRS) | ELSEWHERE) - {("grpo", "paper")}


@pytest.mark.parametrize("name", [
    name for name, convention in ADVANTAGES
    if convention == "verl-0.10" and name not in ("grpo_passk", "dapo", "remax", "gdpo", "reinforce_plus_plus",
                                                  "reinforce_plus_plus_baseline")
])  # fmt: skip
def test_of_verl_a_row_alone_keeps_its_score(name):
    method = methods.get(name, convention="verl-0.10")
    rollouts = Rollouts(
        tokens=np.zeros((1, 1), np.int32), length=np.ones(1, np.int32), mask=np.ones((1, 1), np.float32),
        rewards=np.full((1, 1), 5, np.float32), behavior_logp=np.zeros((1, 1), np.float32),
    )  # fmt: skip
    found = method.estimator.update(rollouts, method.estimator.init(), jax.random.key(0))[0].advantage
    np.testing.assert_array_equal(found, 5.0)


def test_of_nemo_a_row_is_measured_by_the_others():
    found = estimated("grpo", "nemo-rl").advantage
    np.testing.assert_allclose(found[1, 0], -1 / 3 / (OF_OTHERS + 1e-6), rtol=1e-5)


@pytest.mark.parametrize("name", ["grpo", "gspo", "rloo", "dr_grpo", "tis", "icepop"])
def test_of_openrlhf_the_penalty_is_behind_the_baseline(name):
    """0.3 nats at each token, or 10 where they are 50; the second row, of two tokens, loses 0.6 and 0.3 times 0.01."""
    plain = estimated(name, "openrlhf", kl_coefficient=0.0).advantage
    found = estimated(name, "openrlhf", reference=np.float32(-1.3 * MASK)).advantage
    np.testing.assert_allclose((plain - found)[1, :2], [0.006, 0.003], rtol=1e-4)
    far = estimated(name, "openrlhf", reference=-51 * MASK).advantage
    np.testing.assert_allclose((plain - far)[0, 0], 0.1, rtol=1e-4)


@pytest.mark.parametrize(("name", "dual"), [
    ("grpo", 3), ("dr_grpo", 3), ("opo", 3), ("rloo", 3), ("remax", 3), ("reinforce_plus_plus", 3),
    ("reinforce_plus_plus_baseline", 3), ("gdpo", 3), ("otb", 3), ("tis", 3), ("icepop", 3), ("dapo", 10),
])  # fmt: skip
def test_only_verl_bounds_the_loss_of_negative_advantages(name, dual):
    """Advantage -1: the gradient is the ratio, and 0 beyond `dual` times the advantage."""
    assert slope(name, "verl-0.10", dual + 0.1, -1.0) == 0.0
    assert slope(name, "verl-0.10", dual - 0.1, -1.0) == pytest.approx(dual - 0.1, rel=1e-5)
    others = set(methods.conventions_of(name)) - {"paper", "verl-0.10"}
    if name not in ("rloo", "otb"):
        assert all(slope(name, other, dual + 0.1, -1.0, **WITHOUT_KL.get(other, {})) > 0 for other in others)


WITHOUT_KL = {library: {"kl_coefficient": 0.0} for library in ("nemo-rl", "pipeline-rl")}


@pytest.mark.parametrize(("convention", "ratio", "expected"), [
    # With x = 0.5 - log r: k3 = e^x - 1 - x, and its derivative by log pi is 1 - e^x.
    ("paper", 1.0, 1 - np.exp(0.5)),
    ("verl-0.10", 1.0, 1 - np.exp(0.5)),
    ("verl-0.10", np.exp(-4), 0.0),  # 84 nats, kept at 10
    ("pipeline-rl", 1.0, 1 - np.exp(0.5)),
    ("pipeline-rl", np.exp(-9), 1 - np.exp(9.5)),
    ("pipeline-rl", np.exp(-10), 0.0),  # a log-ratio of 10.5, kept at 10
    ("tunix-0.1", 1.0, 1.0),  # k1
    # Times r, or a ratio of 1, that is differentiated too: the gradient -x of the KL, log(pi / reference).
    ("trl-1.16", 1.0, -0.5),
    ("trl-1.16", 2.0, -2 * (0.5 - np.log(2))),
    ("nemo-rl", 1.0, -0.5),
    ("nemo-rl", 2.0, np.log(2) - 0.5),
])  # fmt: skip
def test_kl_of_grpo(convention, ratio, expected):
    assert slope("grpo", convention, ratio, 0.0, kl_coefficient=1.0) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "sapo", "vespo", "gdpo", "dapo", "cispo", "tis", "icepop"])
def test_the_kl_of_trl_carries_the_ratio_where_there_is_one(name):
    assert slope(name, "trl-1.16", 2.0, 0.0, kl_coefficient=1.0) == pytest.approx(2 * np.log(2) - 1, rel=1e-5)
    assert dict(methods.get(name, convention="trl-1.16").options)["kl_unbiased"] is None
    with pytest.raises(ValueError, match="kl_unbiased=True would change nothing"):
        methods.get(name, convention="trl-1.16", kl_unbiased=True)


@pytest.mark.parametrize(("name", "convention", "ratio", "advantage", "expected"), [
    ("sapo", "trl-1.16", 2.0, 1.0, -8 * 0.7310586 * 0.2689414),  # 4 sigma'(1) times the ratio
    ("sapo", "verl-0.10", 2.0, -1.0, 8 * 0.7407749 * 0.2592251),  # tau 1.05
    ("vespo", "trl-1.16", 2.0, 1.0, -4 * np.exp(3 - 6)),  # exp(3 + 2 log 2 - 3 * 2)
    ("luspo", "trl-1.16", 1.19, 1.0, -1.19),
    ("luspo", "trl-1.16", 1.21, 1.0, 0.0),
    ("gspo", "verl-0.10", 1.19, 1.0, -1.19),
    ("gspo", "verl-0.10", 1.21, 1.0, 0.0),
    ("gmpo", "trl-1.16", np.exp(0.3), 1.0, -np.exp(0.3)),  # bounds in nats
    ("gmpo", "trl-1.16", np.exp(0.5), 1.0, 0.0),
    ("gmpo", "verl-0.10", np.exp(0.3), 1.0, 0.0),
    ("dppo", "verl-0.10", 2.0, 1.0, -2.0),  # 0.135 and 0.271: apart by less than 0.2
    ("dppo", "verl-0.10", 5.0, 1.0, 0.0),
    ("dppo", "verl-0.10", 5.0, -1.0, 3.0),  # back to the sampler, with a weight of at most 3
    ("dppo", "prime-rl", 5.0, -1.0, 5.0 + 2e-3 * np.log(5)),
    ("dppo", "prime-rl", 5.0, 1.0, 2e-3 * np.log(5)),
    ("clip_cov", "verl-0.10", 1.19, 1.0, -1.19),
    ("clip_cov", "verl-0.10", 1.21, 1.0, 0.0),
    ("kl_cov", "verl-0.10", 2.0, 1.0, -2.0 + 0.1),  # unclipped, with 0.1 times the slope of |log r|
    ("gpg", "verl-0.10", 2.0, 1.0, -1.0),
    ("dro", "verl-0.10", 2.0, 1.0, -1.0 + 0.05 * np.log(2)),
    ("opo", "verl-0.10", 1.21, 1.0, 0.0),
    ("remax", "verl-0.10", 1.21, 1.0, 0.0),
    ("rloo", "openrlhf", 1.21, 1.0, 0.0),
    ("rloo", "tunix-0.1", 1.1, 1.0, -1.1 + 0.04),  # k1
    ("gspo_token", "tunix-0.1", 1.1, 1.0, -1.1 + 0.04),
    ("deepseek_v32", "trl-1.16", np.exp(-0.6), -1.0, np.exp(-0.6) * 1e-3 * -1.1),  # masked; only the KL is left
    ("deepseek_v32", "trl-1.16", np.exp(-0.1), -1.0, np.exp(-0.1) * (1.0 - 1e-3 * 0.6)),
])  # fmt: skip
def test_slopes(name, convention, ratio, advantage, expected):
    assert slope(name, convention, ratio, advantage) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(("name", "convention", "options", "weights"), [
    # Both tokens have the same weight, 0.4, 1.9 or 6, of the policy before the step over the sampler.
    ("tis", "trl-1.16", {}, (0.4, 1.9, 3.0)),  # token_truncate
    ("tis", "trl-1.16", {"level": "sequence"}, (0.16, 3.0, 3.0)),  # sequence_truncate
    ("icepop", "trl-1.16", {"level": "token"}, (0.4, 1.9, 0.0)),  # token_mask
    ("icepop", "trl-1.16", {}, (0.16, 0.0, 0.0)),  # sequence_mask: 3.61 is beyond 3
    ("tis", "openrlhf", {}, (0.5, 1.9, 5.0)),
    ("icepop", "openrlhf", {}, (0.0, 1.9, 0.0)),
])  # fmt: skip
def test_corrections_of_libraries(name, convention, options, weights):
    objective = methods.get(name, convention=convention, **options).objective
    for weight, expected in zip((0.4, 1.9, 6.0), weights, strict=True):
        behavior = jnp.array([[0.0, -2.0, -2.0]])
        proximal = behavior + jnp.array([[0.0, 1.0, 1.0]]) * np.log(weight)
        batch = Batch(
            tokens=jnp.zeros((1, 3), jnp.int32), mask=jnp.array([[0.0, 1.0, 1.0]]), behavior_logp=behavior,
            weight=jnp.array([[0.0, 1.0, 1.0]]), advantage=jnp.array([[0.0, 1.0, 1.0]]), extras={"proximal_logp": proximal},
        )  # fmt: skip
        gradient = jax.grad(lambda logp, batch=batch: objective(Scores(logp=logp), batch)[0])(proximal)
        np.testing.assert_allclose(gradient[0, 1:], -expected, rtol=1e-5)


def test_of_libraries_the_critic_of_ppo():
    """V_old 0, V 1, R 2: within 0.5 of V_old the error is 1.5^2, of which the gradient is 0; within 0.2 it is 1.8^2."""
    errors = {"verl-0.10": 0.5 * 1.5**2, "openrlhf": 0.5 * 1.5**2, "tunix-0.1": 0.5 * 1.8**2}
    for convention, expected in errors.items():
        objective = methods.get("ppo", convention=convention).objective
        batch = Batch(
            tokens=jnp.zeros((1, 2), jnp.int32), mask=jnp.array([[0.0, 1.0]]), behavior_logp=jnp.zeros((1, 2)),
            advantage=jnp.zeros((1, 2)), returns=jnp.array([[0.0, 2.0]]), extras={"behavior_value": jnp.zeros((1, 2))},
        )  # fmt: skip
        loss, metrics = objective(Scores(logp=jnp.zeros((1, 2)), value=jnp.array([[0.0, 1.0]])), batch)
        assert float(metrics["loss/value_loss"]) == pytest.approx(expected)
    assert dict(methods.get("ppo", convention="openrlhf").options)["whitening"] == "population"


def test_trl_distils_each_token_alike():
    rollouts = estimated("gkd", "trl-1.16")
    np.testing.assert_allclose(rollouts.weight, MASK / MASK.sum(), rtol=1e-6)


@pytest.mark.reduction("iw_opd")
def test_early_disagreement_with_a_teacher_weighs_most():
    """Gaps of 1, -1 and 2 nats; none, a quarter and half of their sizes lie before. At emphasis 0 the gaps alone, whose score
    function has on policy the gradient of the k2 estimate of the KL towards the teacher, KDRL's term."""
    rollouts = Rollouts(
        tokens=np.zeros((1, 3), np.int32), length=np.full(1, 3, np.int32), mask=np.ones((1, 3), np.float32),
        rewards=np.zeros((1, 1), np.float32), behavior_logp=np.full((1, 3), -2, np.float32),
        extras={"teacher_logp": np.array([[-1, -3, 0]], np.float32)},
    )  # fmt: skip
    for emphasis, expected in ((0.5, [1.5, -1.375, 2.5]), (0.0, [1.0, -1.0, 2.0])):
        method = methods.get("iw_opd", emphasis=emphasis)
        found = method.estimator.update(rollouts, method.estimator.init(), jax.random.key(0))[0]
        np.testing.assert_allclose(found.advantage[0], expected, rtol=1e-6)
        np.testing.assert_allclose(found.weight[0], 1 / 3, rtol=1e-6)
    assert slope("iw_opd", "paper", 1.0, 1.5) == pytest.approx(-1.5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# The loss of a pair with log-ratios 0.4 and -0.2 to the reference, of answers with 1 and 2 tokens.
PAIRS = {
    ("discopop", "trl-1.16"): (1 - sigmoid(1.2)) * -np.log(sigmoid(0.06)) + sigmoid(1.2) * np.exp(-0.06),
    ("dpo_norm", "trl-1.16"): -np.log(sigmoid(0.1 * (0.4 + 0.1))),
    ("ipo", "trl-1.16"): (0.4 + 0.1 - 5) ** 2,
    ("rdpo", "trl-1.16"): -np.log(sigmoid(0.06)),
    ("sppo", "trl-1.16"): (0.4 - 5) ** 2 + (-0.2 + 5) ** 2,
    ("rpo", "openrlhf"): -np.log(sigmoid(0.5 * 0.6)) + 0.2 * 0.6,  # log pi of the preferred answer is -1 + 0.4
}


@pytest.mark.parametrize(("name", "convention"), PAIRS)
def test_losses_of_a_pair(name, convention):
    mask = jnp.array([[0.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    batch = Batch(
        tokens=jnp.zeros((2, 3), jnp.int32), mask=mask, weight=mask * jnp.array([[0.5], [0.25]]), reference_logp=-mask,
        rollout=jnp.array([[0] * 3, [1] * 3]), group=jnp.zeros((2, 3), jnp.int32),
        extras={"preference": jnp.array([[1.0] * 3, [-1.0] * 3])},
    )  # fmt: skip
    logp = (jnp.array([[0.4], [-0.1]]) - 1.0) * mask
    loss = methods.get(name, convention=convention).objective(Scores(logp=logp), batch)[0]
    assert float(loss) == pytest.approx(PAIRS[name, convention], rel=1e-5)


@pytest.mark.parametrize(("convention", "weights"), [
    # The detached weight of log pi at ratios 0.5, 1, 1.5 and 6.
    ("paper", (0.5, 1, 1.5, 5)), ("trl-1.16", (0.2, 0.2, 0.2, 0.2)), ("verl-0.10", (0.8, 1, 1.2, 1.2)),
    ("skyrl", (0.5, 1, 1.5, 5)), ("nemo-rl", (0.5, 1, 1.5, 6)), ("open-instruct", (0.5, 1, 1.2, 1.2)),
])  # fmt: skip
def test_weights_of_cispo(convention, weights):
    found = [-slope("cispo", convention, ratio, 1.0) for ratio in (0.5, 1.0, 1.5, 6.0)]
    np.testing.assert_allclose(found, weights, rtol=1e-5)


def test_gspo_of_trl_weighs_long_sequences_more():
    trl, paper = (np.asarray(estimated("gspo", convention).weight) for convention in ("trl-1.16", "paper"))
    np.testing.assert_allclose(paper.sum(axis=1), 1 / 8, rtol=1e-6)
    np.testing.assert_allclose(trl.sum(axis=1), LENGTHS / 20, rtol=1e-6)


def test_rloo_of_trl_clips_the_ratio_of_whole_sequences():
    assert slope("rloo", "paper", 3.0, 2.0) == pytest.approx(-2.0)
    assert slope("rloo", "trl-1.16", 3.0, 2.0) == 0.0
    assert slope("rloo", "trl-1.16", 1.1, 2.0) == pytest.approx(-2.2, rel=1e-5)


def test_dapo_of_trl_keeps_groups_without_signal():
    method = methods.get("dapo", convention="trl-1.16")
    assert "drop_uniform_groups" not in repr(method.estimator) and method.strategy == methods.get("grpo", samples=16).strategy
    assert slope("dapo", "trl-1.16", 1.27, 1.0) == pytest.approx(-1.27, rel=1e-5) and slope("dapo", "trl-1.16", 1.29, 1.0) == 0


def applying(options, method):
    """The options of a convention without those that wait for another option."""
    on = {name: dict(method.options)[value.option] if isinstance(value, When) else True for name, value in options.items()}
    return {name: getattr(value, "value", value) for name, value in options.items() if on[name]}


@pytest.mark.parametrize("name", methods.names())
def test_each_convention_is_another_composition_or_option(name):
    plain = methods.get(name)
    assert methods.conventions_of(name)["paper"] == {} and methods.get(name, convention="paper") == plain
    for convention, options in methods.conventions_of(name).items():
        chosen = methods.get(name, convention=convention)
        assert dict(chosen.options) == methods.options_of(name) | applying(options, chosen)
        # A library may mean what the paper means.
        assert (chosen.composition() == plain.composition()) == (not options), convention


def test_options_come_on_top_of_a_convention():
    method = methods.get("grpo", convention="trl-1.16", samples=3, epsilon=1e-3)
    assert dict(method.options)["samples"] == 3 and dict(method.options)["epsilon"] == 1e-3
    assert dict(method.options)["aggregation"] == "token_mean"


def test_unknown_conventions_name_the_known_ones():
    with pytest.raises(ValueError, match="'grpo' has no convention 'trl'; it has 'paper', 'trl-1.16', 'verl-0.10'"):
        methods.get("grpo", convention="trl")
