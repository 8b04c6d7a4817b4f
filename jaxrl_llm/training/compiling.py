"""JAX's persistent compilation cache, on for whole runs: the second start compiles nothing anew."""

import os
import pathlib

import jax
from jax.experimental.compilation_cache import compilation_cache

VARIABLE = "JAXRL_LLM_COMPILATION_CACHE"


def use_compilation_cache(enabled: bool = True) -> str | None:
    """Keeps compiled programs in a folder of the user, `$XDG_CACHE_HOME/jaxrl_llm/compiled`, unless JAX has one already.

    Compiled programs give the same bits whether they are read or made. A folder that the user set, by
    JAX_COMPILATION_CACHE_DIR or in Python, stays, and so does the least time of compilation from which on programs are kept.

    Args:
      enabled: False changes nothing, as the environment variable JAXRL_LLM_COMPILATION_CACHE=off does.

    Returns: The folder that is used, or None.
    """
    if jax.config.jax_compilation_cache_dir or not enabled or os.environ.get(VARIABLE) == "off":
        return jax.config.jax_compilation_cache_dir
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(base) / "jaxrl_llm" / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # A run is many small programs, each below JAX's threshold of a second.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()  # What was compiled before would otherwise have decided that there is none.
    return jax.config.jax_compilation_cache_dir
