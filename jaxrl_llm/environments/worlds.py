"""A small world of rooms, doors and keys, told as text; its states are values, so that trees can branch anywhere."""

import functools
import random
from typing import NamedTuple

from jaxrl_llm.environments.base import Environment, Example, Transition

DIRECTIONS = {"north": (0, -1), "south": (0, 1), "west": (-1, 0), "east": (1, 0)}
NAMES = ("hall", "kitchen", "library", "cellar", "garden", "attic", "study", "chapel", "stable", "tower", "gallery", "armoury")
HELP = "you can: go DIRECTION, take THING, open chest, look"


class World(NamedTuple):
    """All that there is."""

    rooms: tuple[tuple[int, int], ...]  # places of the rooms on a grid; those side by side have a door
    place: int  # number of the room that the hero is in
    key: int  # that the key lies in; -1 once it is taken
    chest: int  # that the chest stands in, which the key opens


def text_world(rooms: int = 5, steps_give: float = 0.0) -> Environment:
    """A chest is to be opened whose key lies in another room. The reward is 0.5 for the key and 0.5 for the chest, the end.

    A turn is a command, the last line of the text: "go north", "take key", "open chest", "look". What cannot be done is
    answered with what can.

    Args:
      rooms: how many there are, from 2 to 12.
      steps_give: reward of each turn, such as -0.01.

    Raises ValueError: another number of rooms.
    """
    if not 2 <= rooms <= len(NAMES):
        raise ValueError(f"rooms is {rooms}; give 2 to {len(NAMES)}")
    return Environment(functools.partial(_begin, rooms), functools.partial(_step, steps_give))


def _begin(rooms: int, example: Example, seed: int) -> tuple[World, str]:
    source = random.Random(seed)
    places = [(0, 0)]
    while len(places) < rooms:
        x, y = source.choice(places)
        by = source.choice(list(DIRECTIONS.values()))
        fresh = (x + by[0], y + by[1])
        if fresh not in places:
            places.append(fresh)
    key, chest = source.sample(range(rooms), 2)
    world = World(tuple(places), 0, key, chest)
    return world, f"Find the key and open the chest; {HELP}.\n{seen(world)}\n> "


def seen(world: World) -> str:
    """What the hero sees."""
    things = ["a chest"] * (world.place == world.chest) + ["a key"] * (world.place == world.key)
    here = f" There is {' and '.join(things)} here." if things else ""
    held = " You have the key." if world.key < 0 else ""
    return f"You are in the {NAMES[world.place]}.{here} Doors lead {', '.join(_exits(world))}.{held}"


def _exits(world: World) -> dict[str, int]:
    """Number of the room behind each door, by direction."""
    x, y = world.rooms[world.place]
    places = {name: (x + by[0], y + by[1]) for name, by in DIRECTIONS.items()}
    return {name: world.rooms.index(place) for name, place in places.items() if place in world.rooms}


def _step(steps_give: float, world: World, text: str) -> Transition:
    command = (text.strip().splitlines() or [""])[-1].lower().removeprefix(">").split()
    gain, done, told = 0.0, False, ""
    match command:
        case ["go", direction] if direction in _exits(world):
            world = world._replace(place=_exits(world)[direction])
        case ["take", *thing] if thing[-1:] == ["key"] and world.key == world.place:
            world, gain = world._replace(key=-1), 0.5
        case ["open", *thing] if thing[-1:] == ["chest"] and world.chest == world.place and world.key < 0:
            gain, done = 0.5, True
        case ["look"]:
            pass
        case _:
            told = f"That cannot be done; {HELP}. "
    state = seen(world)
    return Transition(world, f"\n{told}{state}\n> ", reward=gain + steps_give, done=done, facts={"state": state})
