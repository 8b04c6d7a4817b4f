"""`python -m jaxrl_llm`."""

from jaxrl_llm.cli import program

program()
