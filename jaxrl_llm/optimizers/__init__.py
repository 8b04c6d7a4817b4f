"""What changes the optimizer's side of a method: optax transforms, averages of parameters, and wrappers of an update."""

from jaxrl_llm.optimizers.averaging import Average, bema, polyak
from jaxrl_llm.optimizers.extrapolation import extrapolate_every
from jaxrl_llm.optimizers.merging import online_dare, online_ties, task_vector
from jaxrl_llm.optimizers.slow_fast import slow_fast

__all__ = ["Average", "bema", "extrapolate_every", "online_dare", "online_ties", "polyak", "slow_fast", "task_vector"]
