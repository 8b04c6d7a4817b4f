"""The state of training, one pytree, and where a run stands: a few plain values. Both travel with every checkpoint."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxrl_llm.data import Cursor


class TrainState(flax.struct.PyTreeNode):
    """Everything that an update changes."""

    step: jax.Array  # int32 [], updates done, skipped ones included
    params: Any  # parameters that train; frozen ones are no part of the state
    opt_state: optax.OptState  # state of the optax transform
    method_state: Any = ()  # state of the method's estimator and controllers
    key: Any = None  # PRNG key of the run; never split, only folded with step, sample and position
    skipped: jax.Array | int = 0  # int32 [], updates that were skipped because loss or gradient was not finite
    # a state each, by name, of the networks that learn beside this one, see `training.modules`
    modules: dict[str, "TrainState"] = flax.struct.field(default_factory=dict)

    @classmethod
    def create(
        cls,
        params: Any,
        optimizer: optax.GradientTransformation,
        *,
        method_state: Any = (),
        key: jax.Array | None = None,
        modules: dict[str, "TrainState"] | None = None,
    ) -> "TrainState":
        """State before the first update; the key defaults to `jax.random.key(0)`.

        Raises ValueError: some parameters hold no real numbers, such as the codes of a quantised base, and so cannot train.
        """
        _check_trainable(params)
        key = jax.random.key(0) if key is None else key
        # Two buffers, as a buffer cannot be donated twice.
        step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return cls(step, params, optimizer.init(params), method_state, key, skipped, modules or {})


def _check_trainable(params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            name = jax.tree_util.keystr(path)
            raise ValueError(f"params{name} is {leaf.dtype} and cannot train; freeze it, see networks.split_params")


SUPERVISED, PREFERENCE, REINFORCEMENT = "sft", "preference", "rl"


@dataclasses.dataclass(frozen=True)
class Progress:
    """Attributes:
    phase: "sft", "preference" or "rl". step: steps done, of all phases. phase_step: steps done of this phase. cursor: next
    example of this phase. accuracy_before: held-out accuracy before this phase, where it was measured. accuracy: the last
    held-out accuracy; of pairs in a preference phase.
    """

    phase: str
    step: int = 0
    phase_step: int = 0
    cursor: Cursor = Cursor()
    accuracy_before: float | None = None
    accuracy: float | None = None

    def advanced(self, cursor: Cursor) -> "Progress":
        """After one more step."""
        return dataclasses.replace(self, step=self.step + 1, phase_step=self.phase_step + 1, cursor=cursor)

    def entered(self, phase: str) -> "Progress":
        """At the beginning of `phase`."""
        return dataclasses.replace(self, phase=phase, phase_step=0, cursor=Cursor())

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"cursor": list(self.cursor)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        return cls(**values | {"cursor": Cursor(*values["cursor"])})
