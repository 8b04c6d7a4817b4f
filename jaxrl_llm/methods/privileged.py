"""Methods in which somebody reads another prompt than the data's: hints, demonstrations, teachers that know more."""

from jaxrl_llm.estimators import budget_length_reward, chain, group_advantage, sequence_mean, token_mean
from jaxrl_llm.methods.advantages import clipped
from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.choices import choice
from jaxrl_llm.methods.distillation import KINDS
from jaxrl_llm.objectives import (
    advantage_regression, by_source, clip, divergence, jensen_shannon, kl, likelihood, negative_log_likelihood, objective,
    policy, scaled, shaped, top,
)  # fmt: skip
from jaxrl_llm.rollouts import contrasted, doubled, escalated, relabelled, self_taught, staged, steered
from jaxrl_llm.rollouts.hints import BEGINNINGS

EMPTY_THOUGHTS = "<think>\n\n</think>\n\n"
TIERS = tuple(
    (f"{{prompt}}\n{lead}: {{part}}", column, share)
    for column, lead in (("knowledge", "What helps"), ("planning", "A plan"), ("solution", "The solution begins so"))
    for share in (0.25, 0.5, 0.75, 1.0)
)
DIVERGENCES = {name: function for name, (function, rest) in KINDS.items() if rest == "bucket"}
DIVERGENCES["jensen_shannon"] = jensen_shannon()


def _taught(samples: int, template: str, teacher: str, count: int, kind: str, coefficient: float = 1.0, **options):
    """Strategy and term of a policy that is taught at its likeliest tokens by somebody who reads a template."""
    function, candidates = choice("kind", kind, DIVERGENCES), top(count=count, of="proximal", with_token=True)
    term = divergence(kind=function, candidates=candidates, against=teacher, coefficient=coefficient)
    return self_taught(samples=samples, template=template, teacher=teacher, **options), term


@method("Reinforcement Learning via Self-Distillation (Hübotter et al., 2026)", "arXiv:2601.20802")
def sdpo(
    samples: int = 8, template: str = "{prompt}\nA right answer to this is:\n{solution}", teacher: str = "proximal",
    count: int = 20, kind: str = "jensen_shannon", share: float = 1.0,
):  # fmt: skip
    """The policy is taught, token by token, by itself with a right answer of the group in its prompt.

    Defaults: The text, and the divergence over the policy's 20 likeliest tokens with all others as one, are ours. `teacher`
      "reference" with a moving `rl.reference` is the paper's average of policies; nothing holds the teacher "proximal", whose
      runs may rise and then fall (docs/mechanisms.md). A `share` below 1 leaves the rest to GRPO's
      loss, in which all rows take part; without it those for which there is no right answer are left out.
    """
    untaught = "plain" if share < 1 else "left out"
    strategy, term = _taught(samples, template, teacher, count, kind, share, untaught=untaught)
    rest = (scaled(term=policy(), coefficient=1.0 - share),) if share < 1 else ()
    return strategy, chain(group_advantage(), token_mean()), objective(term, *rest)


@method("Self-Distillation Enables Continual Learning (Shenfeld et al., 2026)", "arXiv:2601.19897")
def sdft(
    samples: int = 1,
    template: str = "{prompt}\nThis is an example of a good answer:\n{completion}\nNow answer with one of your own.",
    teacher: str = "reference", count: int = 20, kind: str = "reverse",
):  # fmt: skip
    """Learns from demonstrations on its own samples: its teacher is itself with the demonstration in the prompt.

    Defaults: All but the reverse divergence are ours. The reference policy is the teacher: with `rl.reference` moving at each
      step the average of policies that the paper takes.
    """
    strategy, term = _taught(samples, template, teacher, count, kind)
    return strategy, chain(token_mean()), objective(term)


@method(
    "Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models (Zhao et al., 2026)", "arXiv:2601.18734"
)
def opsd(
    samples: int = 1, template: str = "{prompt}\nThe answer is {answer}. Now answer with your own reasoning.",
    teacher: str = "reference", count: int = 64, kind: str = "jensen_shannon",
):  # fmt: skip
    """Distils the policy of the beginning, which is told the answer, into the policy that is not, on the latter's samples.

    Defaults: The kind is the paper's, the text and the number of candidates are ours.
    """
    strategy, term = _taught(samples, template, teacher, count, kind)
    return strategy, chain(sequence_mean()), objective(term)


@method("GHPO: Adaptive Guidance for Stable and Efficient LLM Reinforcement Learning (Liu et al., 2025)", "arXiv:2507.10628")
def ghpo(
    samples: int = 8, levels: tuple[tuple[str, str, float], ...] = BEGINNINGS, warmup_steps: int = 0, clip_low: float = 0.2,
    clip_high: float = 0.2,
):  # fmt: skip
    """GRPO that samples a group anew under a beginning of the solution, then a longer one, while all of its answers are wrong.

    Defaults: 8 samples and a quarter, half and three quarters of the column "solution" are the paper's; the text is ours.
    """
    strategy = escalated(samples=samples, levels=levels, warmup_steps=warmup_steps)
    return strategy, chain(group_advantage(), sequence_mean()), clipped(clip_low, clip_high)


@method("Scaf-GRPO: Scaffolded Group Relative Policy Optimization (Zhang et al., 2025)", "arXiv:2510.19807")
def scaf_grpo(
    samples: int = 8, levels: tuple[tuple[str, str, float], ...] = TIERS, learned: str = "hinted", warmup_steps: int = 50,
    clip_low: float = 0.2, clip_high: float = 0.2,
):  # fmt: skip
    """GRPO in which a group without a right answer gets one, under the least hint that leads to it, in place of a wrong one.

    Defaults: Those of the authors' program: 50 steps without hints, then three tiers of four parts each, the columns
      "knowledge", "planning" and "solution". The texts are ours. `learned` "plain" is its option to learn hinted answers
      without the hint.
    """
    strategy = escalated(samples=samples, levels=levels, replaced="one", learned=learned, warmup_steps=warmup_steps)
    return strategy, chain(group_advantage(), sequence_mean()), clipped(clip_low, clip_high)


@method("Think Outside the Policy: In-Context Steered Policy Optimization (Huang et al., 2025)", "arXiv:2510.26519")
def icpo(
    samples: int = 7, guided: int = 1,
    template: str = "Here is a task with its solution.\n{demonstration}\n\nNow solve this one.\n{prompt}", gamma: float = 0.1,
    clip_low: float = 0.2, clip_high: float = 0.2, clip_dual: float = 3.0, kl_coefficient: float = 0.001,
):  # fmt: skip
    """GRPO with a row that was sampled under a demonstration and is learned without it, most at unlikely tokens.

    Defaults: The paper's, but for the text. A guided row that is not right takes no part. The bonus for right ones that decays
      over 400 steps is left out. `demonstration` is a column of the data.
    """
    own = policy(trust=clip(low=clip_low, high=clip_high, dual=clip_dual))
    given = policy(ratio=likelihood(), trust=shaped(gamma=gamma))
    strategy = steered(samples=samples, guided=guided, template=template, rejects_wrong=True)
    loss = objective(by_source(terms=((0, own), (1, given)), others="guided"), kl(coefficient=kl_coefficient))
    return strategy, chain(group_advantage(), token_mean()), loss


@method("Thought-Augmented Policy Optimization (Wu et al., 2025)", "arXiv:2505.15692")
def thought_augmented(
    samples: int = 6, guided: int = 2, template: str = "{prompt}\nA way to think about it: {thought}", learned: str = "hinted",
    clip_low: float = 0.2, clip_high: float = 0.2,
):  # fmt: skip
    """GRPO over groups of which some rows have a pattern of thought in their prompts, the column "thought".

    Defaults: All are ours.
    Unconfirmed: how many rows are guided, how thoughts are chosen (here the data brings them), and which prompt is learned.
    """
    strategy = steered(samples=samples, guided=guided, template=template, learned=learned)
    return strategy, chain(group_advantage(), sequence_mean()), clipped(clip_low, clip_high)


@method("Multimodal Policy Internalization for Conversational Agents (Wang et al., 2025)", "arXiv:2510.09474")
def policy_rollout(
    samples: int = 4, guided: int = 4, template: str = "{policy}\n\n{prompt}", clip_low: float = 0.2, clip_high: float = 0.2
):
    """GRPO over rows with and without a document of instructions in the prompt, all learned without it, to know it by heart.

    Defaults: All are ours. The document is the column "policy".
    Unconfirmed: the denominator of the ratio of guided rows; here it is the policy that sampled them, behind the document.
    """
    strategy = steered(samples=samples, guided=guided, template=template, learned="plain")
    return strategy, chain(group_advantage(), sequence_mean()), clipped(clip_low, clip_high)


@method("Thinking-Free Policy Initialization (Xu et al., 2025)", "arXiv:2509.26226")
def tfpi(
    samples: int = 8, stages: tuple[tuple[int, str, str], ...] = ((0, "{prompt}", EMPTY_THOUGHTS),), clip_low: float = 0.2,
    clip_high: float = 0.28,
):  # fmt: skip
    """DAPO's loss on answers that begin with an empty block of thoughts, before a run that thinks.

    Defaults: 8 samples are a reader's notes of the paper; the block is that of Qwen3. A stage `(step, "{prompt}", "")` goes
      back to thinking within the run. Longer answers from stage to stage are runs with another `rl.max_new_tokens`.
    """
    return staged(samples=samples, stages=stages), chain(group_advantage(), token_mean()), clipped(clip_low, clip_high)


@method("Train Long, Think Short: Curriculum Learning for Efficient Reasoning (Hammoud et al., 2025)", "arXiv:2508.08940")
def train_long_think_short(
    samples: int = 8, budget: float = 256.0, decay: float = 0.7, interval: int = 200, length_weight: float = 0.5,
    template: str = "{prompt}\nUse exactly [budget] tokens.", clip_low: float = 0.2, clip_high: float = 0.2,
):  # fmt: skip
    """GRPO with a reward for answers as long as a budget that the prompt states and that shrinks in the training.

    Defaults: Samples, budget, decay and, from its budgets, the interval are the paper's. The weight is that of its
      accuracy-heavy mix, 0.3 for the length to 0.6 for the answer; the clip is ours. "[budget]" in the template is the budget.
    """
    budgets = [budget]
    while budgets[-1] > 1.0 and decay < 1.0:
        budgets.append(max(1.0, budget * decay ** len(budgets)))
    stages = tuple((n * interval, template.replace("[budget]", f"{value:.0f}"), "") for n, value in enumerate(budgets))
    length = budget_length_reward(budget=budget, decay=decay, interval=interval, weight=length_weight)
    estimator = chain(length, group_advantage(), sequence_mean())
    return staged(samples=samples, stages=stages), estimator, clipped(clip_low, clip_high)


@method("Hindsight Experience Replay (Andrychowicz et al., 2017)", "arXiv:1707.01495")
def hindsight(
    samples: int = 8, template: str = "{prompt}\nThe answer is to be {achieved}.", coefficient: float = 0.1,
    clip_low: float = 0.2, clip_high: float = 0.2,
):  # fmt: skip
    """GRPO, and the likelihood of wrong answers behind a prompt that asks for what they did achieve.

    Defaults: All are ours; the paper relabels transitions of an off-policy learner, four goals each.
    """
    terms = ((0, policy(trust=clip(low=clip_low, high=clip_high))), (1, negative_log_likelihood(coefficient=coefficient)))
    objective_ = objective(by_source(terms=terms, others="hindsight"))
    return relabelled(samples=samples, template=template), chain(group_advantage(), sequence_mean()), objective_


@method(
    "Stabilizing Deep Q-Learning with ConvNets and Vision Transformers under Data Augmentation (Hansen et al., 2021)",
    "arXiv:2107.00644",
)
def svea(samples: int = 8, template: str = "Answer this question.\n{prompt}", clip_low: float = 0.2, clip_high: float = 0.2):
    """GRPO of each answer behind its prompt and behind a perturbed one, with the advantage of the clean one, half each.

    Defaults: The halves are the paper's, whose targets are values; all else is ours.
    """
    return doubled(samples=samples, template=template), chain(group_advantage(), sequence_mean()), clipped(clip_low, clip_high)


@method("Perception-Aware Policy Optimization (Wang et al., 2025)", "arXiv:2507.06448")
def papo(
    samples: int = 8, template: str = "Answer.", gamma: float = 0.01, entropy_coefficient: float = 0.0, clip_low: float = 0.2,
    clip_high: float = 0.28,
):  # fmt: skip
    """GRPO that rewards answers for depending on their prompt: the KL (k3) to the policy with the evidence taken away grows.

    Defaults: `gamma` is the paper's, which blackens parts of an image; the template without the evidence is ours. A negative
      `entropy_coefficient` is its loss on the policy's entropy, that on the other one, which is not differentiated, being
      constant.
    """
    base = clipped(clip_low, clip_high, entropy_coefficient=entropy_coefficient)
    away = kl(coefficient=-gamma, kind="k3", against="proximal")
    return contrasted(samples=samples, template=template), chain(group_advantage(), token_mean()), objective(*base.terms, away)


@method(
    "DeepVideo-R1: Video Reinforcement Fine-Tuning via Difficulty-aware Regressive GRPO (Park et al., 2025)", "arXiv:2506.07464"
)
def deepvideo_r1(
    samples: int = 8, levels: tuple[tuple[str, str, float], ...] = BEGINNINGS, kl_coefficient: float = 0.04,
    epsilon: float = 1e-4,
):  # fmt: skip
    """Regression of advantages on standardised log-ratios, with beginnings of the solution for prompts that are too hard.

    Defaults: Those of `reg_grpo` and `ghpo`.
    Unconfirmed: the sizes of the hints; noise on prompts that are too easy is left out.
    """
    loss = objective(advantage_regression(epsilon=epsilon), kl(coefficient=kl_coefficient))
    return escalated(samples=samples, levels=levels), chain(group_advantage(), sequence_mean()), loss
