"""One name, several formulas: what each convention of a method does to the same eight answers, in numbers."""

import jax
import numpy as np

from jaxrl_llm import methods
from jaxrl_llm.data import pack
from jaxrl_llm.types import Rollouts, Scores

HEAD = """# Conventions

Where the field uses one name for several formulas, `methods.get(name, convention="...")` chooses one; without it, the paper's
is meant. A convention stands for options, and options given beside it come on top:

```python
from jaxrl_llm import methods

methods.get("grpo", convention="trl-1.16", samples=16)
```

A convention is loss, advantage, KL and aggregation together: what the library computes where only the name of the method is
chosen and all else is left to its defaults, or to its own recipe of that name where the method's section says so. What is
said "with" another option, as `kl_unbiased=True with kl_coefficient`, applies once that option is on: a library's kind of KL
comes with a coefficient, even if the library has none by default. Versions are those whose source was read: TRL 1.16.0,
verl 0.9.1 with notes on 0.10, NeMo-RL 0.6, OpenRLHF 0.11, Tunix 0.1.7. Numbers of samples and lengths stay the method's,
and so does what only splits of the batch would change.

Other differences between libraries are options of single parts: kinds and bounds of KL estimates (`objectives.kl`), where
epsilon stands (`estimators.std_scale(placement=...)`), over which rows a baseline is taken (`over=...`), what a row alone
in its group is compared with (`alone=...`).

**The bound of log-ratios.** Here every difference of two log-probabilities is kept within +-20 nats, and has no gradient
beyond, as in most losses of verl and Tunix: importance ratios of tokens, sums of them over whole sequences, estimates of the
KL (NeMo-RL too), the log-ratios of preferences (`numerics.log_ratio`). TRL has no such bound, PipelineRL 10 for the KL.
`objectives.kl(ratio_bound=...)` moves or lifts that of a KL, `objectives.kl(bound=...)` bounds its estimates, and
`objectives.sequence_ratio(highest=...)` the ratios of GSPO. What two healthy policies say of a sampled token is far from 20
nats; the bound keeps products finite in float32 where one of them is not.

The numbers below are those of two prompts with four answers each, rewards 1 0 0 0 and 1 1 1 0, of 2, 4, 6 and 8 tokens, with
importance ratios from 0.6 to 1.7: the advantage of the first two answers, the share in the loss of a token of the
shortest and of the longest answer, the loss, and the norm of its gradient by the log-probabilities.

"""
LENGTHS = (2, 4, 6, 8)


def page() -> str:
    """docs/conventions.md."""
    return HEAD + "\n".join(_section(name) for name in methods.names() if len(methods.conventions_of(name)) > 1)


def _section(name: str) -> str:
    head = "| convention | stands for | advantages | shares | loss | gradient |\n|---|---|---|---|---|---|"
    rows = [_row(name, convention, options) for convention, options in methods.conventions_of(name).items()]
    return "\n".join([f"## {name}\n", head, *rows]) + "\n"


def _row(name: str, convention: str, options: dict) -> str:
    chosen = ", ".join(f"`{option}={value!r}`" for option, value in options.items()) or "the defaults"
    return f"| {convention} | {chosen} | {' | '.join(_numbers(methods.get(name, convention=convention)))} |"


def _numbers(method) -> list[str]:
    rollouts = _example()
    if "preference" in method.needs:
        rollouts = rollouts.replace(group=np.arange(8, dtype=np.int32) // 2)
    rollouts, _ = method.estimator.update(rollouts, method.estimator.init(), jax.random.key(0))
    batch = pack(jax.device_get(rollouts), 10, coefficients={name: np.float32(0.01) for name, _ in method.controllers})
    scores = _scores(batch)
    loss, gradient = jax.value_and_grad(lambda scores: method.objective(scores, batch)[0])(scores)
    advantage, weight = np.asarray(rollouts.advantage)[:, 1], np.asarray(rollouts.weight)[:, 1]
    norm = float(np.linalg.norm(gradient.logp))
    return [f"{advantage[0]:.3g}, {advantage[1]:.3g}", f"{weight[0]:.3g}, {weight[3]:.3g}", f"{float(loss):.3g}", f"{norm:.3g}"]


def _example() -> Rollouts:
    """Column 0 is the prompt."""
    random = np.random.default_rng(0)
    length = 1 + np.array(LENGTHS * 2, np.int32)
    mask = ((np.arange(9) > 0) & (np.arange(9) < length[:, None])).astype(np.float32)
    behavior = (mask * -random.exponential(1.0, mask.shape)).astype(np.float32)
    near = {
        f"{who}_logp": behavior + (mask * random.uniform(-0.3, 0.3, mask.shape)).astype(np.float32)
        for who in ("reference", "proximal", "teacher")
    }
    values = {"behavior_value": 0.1 * mask, "preference": np.array([1, -1] * 4, np.float32), "mismatched_ratio": 0.05 * mask}
    values |= {"greedy_reward": np.full(8, 0.5, np.float32), "proximal_log_collision": -mask, "proximal_entropy": 0.5 * mask}
    likely = np.log(np.array([0.7, 0.3], np.float32)) * mask[..., None]
    values |= {"candidates": np.arange(2, dtype=np.int32) + np.zeros((8, 9, 1), np.int32), "teacher_candidate_logp": likely}
    return Rollouts(
        tokens=np.zeros(mask.shape, np.int32),
        length=length,
        mask=mask,
        rewards=np.array([[1], [0], [0], [0], [1], [1], [1], [0]], np.float32),
        group=np.arange(8, dtype=np.int32) // 4,
        behavior_logp=behavior,
        extras=near | values,
    )


def _scores(batch) -> Scores:
    ratio = 0.6 + 1.1 * ((7 * np.asarray(batch.rollout) + 3 * np.asarray(batch.positions)) % 11) / 10
    logp = np.where(batch.mask > 0, batch.behavior_logp + np.log(ratio), 0.0).astype(np.float32)
    return Scores(
        logp=logp,
        entropy=0 * logp + 1,
        mean_logp=0 * logp - 4,
        value=0.2 * batch.mask,
        log_collision=0 * logp - 1,
        candidate_logp=np.log(np.array([0.4, 0.6], np.float32)) * batch.mask[..., None],
    )
