"""The teacher of methods that distil one."""

import jax
from ml_collections import ConfigDict

from jaxrl_llm.networks import Network
from jaxrl_llm.training.policies import load_policy


def build_teacher(config: ConfigDict, student: Network, mesh: jax.sharding.Mesh | None = None) -> Network | None:
    """The network in `config.teacher.directory`, with its parameters, laid out on the mesh; None where that is empty.

    Raises:
      ValueError: there is no policy in the folder, or its vocabulary is not the student's.
    """
    directory = config.teacher.directory
    if not directory:
        return None
    teacher, _ = load_policy(directory, dtype=config.network.param_dtype, mesh=mesh)
    sizes = teacher.config.vocab_size, student.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the teacher in {directory} has {sizes[0]} tokens, the student {sizes[1]}; give one of its vocabulary"
        )
    return teacher
