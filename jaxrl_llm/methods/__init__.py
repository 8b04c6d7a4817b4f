"""The catalogue: every named method is a strategy, an estimator and an objective."""

from jaxrl_llm.methods import adaptive_trust as _adaptive_trust  # noqa: F401
from jaxrl_llm.methods import advantages as _advantages  # noqa: F401
from jaxrl_llm.methods import catalogue as _catalogue  # noqa: F401  (registers the methods)
from jaxrl_llm.methods import contrast as _contrast  # noqa: F401
from jaxrl_llm.methods import credit as _credit  # noqa: F401
from jaxrl_llm.methods import distillation as _distillation  # noqa: F401
from jaxrl_llm.methods import games as _games  # noqa: F401
from jaxrl_llm.methods import given_baselines as _given_baselines  # noqa: F401
from jaxrl_llm.methods import imitation as _imitation  # noqa: F401
from jaxrl_llm.methods import lengths as _lengths  # noqa: F401
from jaxrl_llm.methods import off_policy as _off_policy  # noqa: F401
from jaxrl_llm.methods import preference_rewards as _preference_rewards  # noqa: F401
from jaxrl_llm.methods import preferences as _preferences  # noqa: F401
from jaxrl_llm.methods import rankings as _rankings  # noqa: F401
from jaxrl_llm.methods import reference_free as _reference_free  # noqa: F401
from jaxrl_llm.methods import reweighting as _reweighting  # noqa: F401
from jaxrl_llm.methods import selection as _selection  # noqa: F401
from jaxrl_llm.methods import sequence_ratios as _sequence_ratios  # noqa: F401
from jaxrl_llm.methods import several as _several  # noqa: F401
from jaxrl_llm.methods import shaping as _shaping  # noqa: F401
from jaxrl_llm.methods import token_shaping as _token_shaping  # noqa: F401
from jaxrl_llm.methods import trust_regions as _trust_regions  # noqa: F401
from jaxrl_llm.methods import unlabelled as _unlabelled  # noqa: F401
from jaxrl_llm.methods import unpaired as _unpaired  # noqa: F401
from jaxrl_llm.methods import without_ratio as _without_ratio  # noqa: F401
from jaxrl_llm.methods.base import Method, conventions_of, get, names, options_of, table

__all__ = ["Method", "conventions_of", "get", "names", "options_of", "table"]
