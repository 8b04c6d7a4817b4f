"""`python -m jaxrl_llm`."""

import sys

from jaxrl_llm.cli import main

sys.exit(main())
