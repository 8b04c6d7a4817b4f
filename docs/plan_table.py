"""Writes the tables of plan.md: `python docs/plan_table.py` compiles the updates that plan_table.json does not have yet.

Each row is a compile of the real update, in a process of its own, as libtpu can be loaded once in one.
"""

import json
import pathlib
import subprocess
import sys

PLACE = pathlib.Path(__file__).with_name("plan_table.json")
DOCUMENT = pathlib.Path(__file__).with_name("plan.md")
# Model, slice, fsdp, expert, tensor.
ROWS = [
    ("qwen3-8b", "v5e:8x8", 16, 1, 4), ("qwen3-32b", "v5p:4x4x4", 16, 1, 4), ("qwen3-30b-a3b", "v5p:4x4x4", 16, 4, 1),
    ("qwen3-8b", "v6e:4x4", 16, 1, 1), ("qwen3-8b", "v6e:8x8", 16, 1, 4), ("qwen3-8b", "v6e:16x16", 64, 1, 4),
    ("qwen3-8b", "v6e:2x2", 4, 1, 1), ("qwen3-32b", "v6e:8x8", 16, 1, 4), ("qwen3-30b-a3b", "v6e:8x8", 16, 4, 1),
    ("qwen3-32b", "v5e:16x16", 64, 1, 4), ("qwen3-30b-a3b", "v5e:16x16", 64, 4, 1), ("qwen3-32b", "v5p:2x2x4", 16, 1, 1),
    ("qwen3-30b-a3b", "v5p:2x2x4", 4, 4, 1), ("qwen3-8b", "v5p:4x4x4", 16, 1, 4),
]  # fmt: skip
COLUMNS = (
    "| model | slice | fsdp, expert, tensor | GiB a device | of | fits | TFLOP | GB of HBM | sent | least s | bound | MFU |"
)


def configuration(model: str, fsdp: int, expert: int, tensor: int):
    """GRPO with a reference: 32 prompts of 1024 tokens, 8 answers of 3072 each; float32 masters, computed in bfloat16."""
    from jaxrl_llm.training import default_config

    config = default_config()
    config.network.update(name=model, dtype="bfloat16", remat="full")
    config.task.max_prompt_tokens = 1024
    config.method.options.update(samples=8, kl_coefficient=0.01)
    config.rl.update(prompts=32, max_new_tokens=3072)
    config.mesh.update(fsdp=fsdp, expert=expert, tensor=tensor)
    return config


def row(model: str, topology: str, *sizes: str) -> dict:
    """The update, compiled in this process."""
    import dataclasses

    from jaxrl_llm.distributed import chips
    from jaxrl_llm.training.plan import planned
    from jaxrl_llm.training.programs import all_programs, planned_run

    wanted = chips.parse_topology(topology)
    run = planned_run(configuration(model, *map(int, sizes)), chips.topology_devices(wanted))
    found = planned(all_programs(run, wanted.chip.memory / wanted.chip.devices)[0], run, wanted)
    return dataclasses.asdict(found) | {"fits": found.fits, "least_seconds": found.least_seconds, "bound": found.bound}


def line(place: list, found: dict) -> str:
    """A row of the table."""
    model, topology, *sizes = place
    size, fits = sum(found["memory"].values()), "yes" if found["fits"] else "no"
    memory = f"{size / 2**30:.1f} | {found['capacity'] / 2**30:.0f} | {fits}"
    head = f"| {model} | {topology} | {', '.join(map(str, sizes))} | {memory} |"
    if found["fault"]:
        return f"{head} refused by the compiler | | | | | |"
    amounts = f"{found['flops'] / 1e12:.0f} | {found['moved'] / 1e9:.0f} | {sum(found['sent'].values()) / 1e9:.1f}"
    return f"{head} {amounts} | {found['least_seconds']:.2f} | {found['bound']} | {100 * found['mfu']:.0f}% |"


def write(known: list) -> None:
    """The rows that there are into the document."""
    order = [list(place) for place in ROWS]
    known = sorted((entry for entry in known if entry[0] in order), key=lambda entry: (entry[0][0], order.index(entry[0])))
    before, _, rest = DOCUMENT.read_text().partition("<!-- table -->\n")
    after = rest.partition("<!-- end -->\n")[2]
    lines = [COLUMNS, "|" + "---|" * 12, *(line(*entry) for entry in known)]
    DOCUMENT.write_text(before + "<!-- table -->\n" + "\n".join(lines) + "\n<!-- end -->\n" + after)


def main():
    """Compiles the rows that are missing, each in a process of its own, and writes them as they come."""
    known = json.loads(PLACE.read_text()) if PLACE.exists() else []
    write(known)
    for wanted in map(list, ROWS):
        if all(place != wanted for place, _ in known):
            done = subprocess.run([sys.executable, __file__, *map(str, wanted)], capture_output=True, text=True)
            if done.returncode:
                print(wanted, done.stderr[-2000:], file=sys.stderr)
                continue
            known.append([wanted, json.loads(done.stdout.splitlines()[-1])])
            PLACE.write_text(json.dumps(known, indent=1) + "\n")
            write(known)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(row(*sys.argv[1:])))
    else:
        main()
