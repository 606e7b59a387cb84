"""Simulated users to be played: of the scenarios, and many at once, to load a server."""

import dataclasses
from collections.abc import Iterable

from tml_jax.data.simulator import Simulator
from tml_jax.eval.targets import Case

LOADS = (1, 8, 16)
"""Sessions at once at which steps are timed."""
_LOAD_S = 26.0  # all for as long as the shortest


def cases(suite: str, scenarios: Iterable[str], each: int, simulator: Simulator) -> list[Case]:
    """So many conversations of each scenario; `user` says whose voice, of which speech engine, the user has."""
    found = []
    for scenario in scenarios:
        for i in range(each):
            user = simulator.conversation(i, scenario)
            voice = {"voice": user.voice, "engine": simulator.cast.bank.voices[user.voice].engine}
            found.append(Case(f"{suite}/{scenario}/{i}", suite, scenario, user, i, {"user": voice}))
    return found


def load(slots: int, simulator: Simulator) -> list[Case]:
    """As many users at once as `LOADS` says, where a server has so many slots; the category says how many."""
    users = [simulator.conversation(i, "command") for i in range(max(LOADS))]
    users = [dataclasses.replace(user, duration_s=_LOAD_S) for user in users]
    numbers = [(n, i) for n in LOADS for i in range(n) if n <= slots]
    return [Case(f"load/{n}/{i}", "load", str(n), users[i], i, together=n) for n, i in numbers]
