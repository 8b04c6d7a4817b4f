"""What a method says of its update: what it lays over the optimizer, or that seeds stand in the place of gradients."""

import dataclasses
from typing import Any, NamedTuple

from jaxrl_llm.compose import Composable
from jaxrl_llm.optimizers.evolution import centred_ranks


class Wrap(NamedTuple):
    """What a method lays over its phase's optimizer, as `config.PHASE.optimizer.wrap` does, which may set other options."""

    layers: dict[str, dict[str, Any]]  # options by name, see `training.wrapping`


@dataclasses.dataclass(frozen=True)
class Evolution:
    """An update from the rewards of perturbed parameters; such a method has neither loss nor advantages."""

    pairs: int = 8  # of perturbations of opposite sign, each of which answers all prompts of the step
    scale: float = 0.01  # standard deviation of the noise on each parameter
    shaping: Composable = centred_ranks()  # mean rewards [pairs, 2] -> weights of the same shape, see `optimizers.evolution`

    def __post_init__(self):
        if self.pairs < 1 or self.scale <= 0:
            raise ValueError(f"pairs={self.pairs}, scale={self.scale}: give at least one pair, and a scale above 0")
