"""The update, the state, the loop."""

from jaxrl_llm.training.config import check_config, default_config
from jaxrl_llm.training.state import TrainState
from jaxrl_llm.training.update import make_gradient, make_update

__all__ = ["TrainState", "check_config", "default_config", "make_gradient", "make_update"]
