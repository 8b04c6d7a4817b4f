"""What libraries do under every name: options that their conventions of several methods share.

Read from the sources of TRL 1.16.0, verl 0.9.1 (and notes on 0.10), NeMo-RL 0.6, OpenRLHF 0.11 and Tunix 0.1.7. Where a library
only has defaults, they are meant, not those of its recipes.
"""

from jaxrl_llm.methods.base import When

BY_TOKEN = {"aggregation": "token_mean"}


def _with_kl(**options) -> dict:
    return {name: When("kl_coefficient", value) for name, value in options.items()}


# Bessel's deviation and 1e-4 outside of the root; no KL, and if any, k3 times the differentiated ratio.
TRL = {"degrees_of_freedom": 1, "epsilon": 1e-4}
TRL_KL = {"kl_coefficient": 0.0} | _with_kl(kl_unbiased=True)

# Bessel's deviation; a row alone keeps its score; the dual clip wherever there is a clip of token ratios.
VERL = {"degrees_of_freedom": 1, "alone": "none"}
VERL_CLIP = {"clip_low": 0.2, "clip_high": 0.2, "clip_dual": 3.0}
VERL_KL = {"kl_coefficient": 0.0} | _with_kl(kl_kind="k3", kl_bound=10.0)

# Mean and Bessel's deviation of the other rows, and no division where it is 0; k3 with the score-function part of its gradient.
NEMO = {"baseline": "leave_one_out", "scale": "others_std", "degrees_of_freedom": 1, "placement": "where_positive"}
NEMO_KL = {"kl_coefficient": 0.01} | _with_kl(kl_kind="k3", kl_unbiased="own", kl_bound=10.0)

# Bessel's deviation and 1e-9; k1 behind the baseline, each estimate within 10 nats.
OPENRLHF = {"degrees_of_freedom": 1, "epsilon": 1e-9}
OPENRLHF_KL = {"kl_coefficient": 0.01} | _with_kl(kl_kind="k1", kl_place="advantage", kl_bound=10.0)

# Bessel's deviation; plain k1 in the loss.
TUNIX = {"degrees_of_freedom": 1}
TUNIX_KL = {"kl_coefficient": 0.04} | _with_kl(kl_kind="k1")
