"""Methods that learn from the order of the samples of a group."""

from jaxrl_llm.methods.base import method
from jaxrl_llm.methods.contrast import scored
from jaxrl_llm.objectives import objective, pairwise_ranking, plackett_luce
from jaxrl_llm.rollouts import grouped


@method(paper="Direct Preference Optimization (Rafailov et al., 2023)", url="https://arxiv.org/abs/2305.18290")
def listwise_dpo(*, samples: int = 4, beta: float = 0.1):
    """DPO for rankings: the Plackett-Luce likelihood of the order of the samples' rewards.

    Defaults: `beta` is DPO's; the paper has given rankings of any length in place of samples.
    """
    return grouped(samples=samples), scored(), objective(plackett_luce(beta=beta, members=samples))


@method(
    paper="LiPO: Listwise Preference Optimization through Learning-to-Rank (Liu et al., 2024)",
    url="https://arxiv.org/abs/2402.01878",
)
def lipo(*, samples: int = 8, beta: float = 0.05):
    """Logistic losses on all pairs of a list, each by what the swap of both would change in the ranking's gain.

    Defaults: The paper has lists of 8; `beta` is ours.
    """
    return grouped(samples=samples), scored(), objective(pairwise_ranking(beta=beta, members=samples))


@method(
    paper="TPO: Aligning Large Language Models with Multi-branch & Multi-step Preference Trees (Liao et al., 2024)",
    url="https://arxiv.org/abs/2410.12854",
    certainty="sketch",
)
def tpo_tree(*, samples: int = 8, beta: float = 0.5):
    """A ranking loss over all answers of a preference tree rather than over pairs.

    Defaults: `beta` is that of the authors' code.

    Unconfirmed: The paper's weights of steps by their likeness are left out, so that this is LiPO's loss with another
      `beta`. The authors' code has neither gains nor the same outer function, and its value rises with its ranking loss.
    """
    return grouped(samples=samples), scored(), objective(pairwise_ranking(beta=beta, members=samples))
