"""What changes the optimizer's side of a method: optax transforms, averages of parameters, and wrappers of an update."""

from jaxrl_llm.optimizers import evolution
from jaxrl_llm.optimizers.asking import objective_weights, recursive_momentum
from jaxrl_llm.optimizers.averaging import Average, bema, extrapolate_every, polyak, slow_fast
from jaxrl_llm.optimizers.merging import online_dare, online_ties, task_vector
from jaxrl_llm.optimizers.resets import soft_reset
from jaxrl_llm.optimizers.step_rules import implicit_transport, polyak_step

__all__ = [
    "Average", "bema", "evolution", "extrapolate_every", "implicit_transport", "objective_weights", "online_dare",
    "online_ties", "polyak", "polyak_step", "recursive_momentum", "slow_fast", "soft_reset", "task_vector",
]  # fmt: skip
