"""What a method says of its update: its critic, what it lays over the optimizer, or that seeds stand in for gradients."""

import dataclasses
from typing import Any, NamedTuple

from jaxrl_llm.compose import Composable, require
from jaxrl_llm.estimators import Estimator
from jaxrl_llm.objectives.heads import plain, width
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

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.scale <= 0:
            raise ValueError(f"pairs={self.pairs}, scale={self.scale}: give at least one pair, and a scale above 0")


@dataclasses.dataclass(frozen=True)
class Critic:
    """A critic as three slots, and how it is trained beside the policy."""

    loss: Composable  # term of the objective, such as `value_loss()`
    head: Composable = plain()  # outputs of the value head -> value, see `objectives.heads`
    # estimator that provides `returns` behind those of the method; None where these provide them, as `gae` does
    targets: Estimator | None = None
    # share of the critic that its average (`target_value`...) takes over after each step; None for no average
    follow: float | None = None
    warmup_steps: int = 0  # first steps of the phase, in which the critic alone learns
    frozen: bool = False  # whether it stays as the warm-up has left it

    def __post_init__(self) -> None:
        wanted = "above 0 and at most 1, or None for no average"
        require(self.follow is None or 0 < self.follow <= 1, "follow", self.follow, wanted)
        if self.warmup_steps < 0 or (self.frozen and not self.warmup_steps):
            raise ValueError(f"warmup_steps is {self.warmup_steps}; a critic that is frozen needs at least 1, others 0 or more")

    @property
    def outputs(self) -> int:
        """Outputs of the value head."""
        return width(self.head)

    def __repr__(self) -> str:
        values = [(field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self)]
        shown = [f"{name}={value!r}" for name, value, default in values if value != default]
        return f"Critic({', '.join(shown)})"
