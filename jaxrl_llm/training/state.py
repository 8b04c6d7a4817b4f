"""The state of training: one pytree, one checkpoint."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """Everything that an update changes.

    Attributes:
      step: int32 [], updates done, skipped ones included.
      params: parameters that train.
      opt_state: state of the optax transform.
      method_state: state of the method's estimator.
      key: PRNG key of the run; never split, only folded with step, sample and position.
      skipped: int32 [], updates that were skipped because loss or gradient was not finite.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    method_state: Any = ()
    key: Any = None
    skipped: jax.Array | int = 0

    @classmethod
    def create(cls, params, optimizer: optax.GradientTransformation, *, method_state=(), key=None) -> TrainState:
        """State before the first update; the key defaults to `jax.random.key(0)`."""
        key = jax.random.key(0) if key is None else key
        # Two buffers, as a buffer cannot be donated twice.
        step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return cls(step, params, optimizer.init(params), method_state, key, skipped)
