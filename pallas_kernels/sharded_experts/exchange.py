"""Two ways to bring tokens to the devices of their experts, and the results back. Each runs inside `jax.shard_map`.

Both are exact whatever the router chooses. `all_to_all` has room for `ROOM` times an even share of choices on each
device; where some device is sent more, all travel in several rounds, an equal part of every device's choices in each.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels import platform
from pallas_kernels.grouped_matmul import routing

# (tokens, ids of this device's experts, weights, *the experts) -> the sum of their results, before sums over others.
Local = Callable[..., Array]
ROOM = 1.25


def room(choices: int, devices: int) -> int:
    """Rows that a device has room for, where each of `devices` sends `choices` of them."""
    return -(-(int(ROOM * choices) + devices) // 16) * 16


def own_ids(expert_ids: Int[Array, "t k"], own: int, axis: str) -> Int[Array, "t k"]:
    """Ids among this device's `own` experts; `own` for everybody else's."""
    ids = expert_ids - own * lax.axis_index(axis)
    return jnp.where((ids >= 0) & (ids < own), ids, own)


def gather(
    x: Float[Array, "t d"],
    expert_ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    experts: Sequence[Any],
    own: int,
    axis: str,
    run: Local,
) -> Float[Array, "t d"]:
    """All tokens of the group to all its devices; partial sums are added up on the way back."""
    x, ids, weights = (lax.all_gather(a, axis, tiled=True) for a in (x, expert_ids, weights))
    y = run(x, own_ids(ids, own, axis), weights, *experts)
    return lax.psum_scatter(y, axis, scatter_dimension=0, tiled=True)


def all_to_all(
    x: Float[Array, "t d"],
    expert_ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    experts: Sequence[Any],
    own: int,
    axis: str,
    run: Local,
    everywhere: Sequence[str],
) -> Float[Array, "t d"]:
    """Each choice to its expert's device and back; `everywhere`: all mesh axes that the call runs over."""
    devices = lax.axis_size(axis)
    order, inverse, sizes = routing.sort_by_expert(expert_ids, devices * own)
    send = sizes.reshape(devices, own)
    # A choice's weight travels with it: so the result needn't come back once more for the weight's gradient.
    scale = routing.collect(weights.reshape(-1, 1).astype(x.dtype), inverse, order)
    space = room(order.size, devices)
    most = lax.pmax(jnp.max(lax.psum(jnp.sum(send, axis=1), axis)), tuple(everywhere))
    rounds = -(-most // (space - devices))
    y = _there_and_back(axis, space, run, routing.spread(x, order, inverse), scale, tuple(experts), send, rounds)
    return routing.combine(routing.collect(y, order, inverse), expert_ids, devices * own)


class _Round:
    """One of several rounds of an exchange: of the rows that go to each device, a part of the same share.

    Args:
      send: int32 [n, own], rows for each expert of each device in all rounds.
      number, rounds: which round of how many. room: rows that arrive at most. axis: of the devices.
    """

    def __init__(self, send: Array, number: Array, rounds: Array, room: int, axis: str) -> None:
        self.room, self.axis, own = room, axis, send.shape[1]
        total = jnp.sum(send, axis=1, keepdims=True)
        first, last = total * number // rounds, total * (number + 1) // rounds
        ends = jnp.clip(jnp.cumsum(send, axis=1), first, last)
        receive = lax.all_to_all(jnp.diff(ends, axis=1, prepend=first), axis, 0, 0, tiled=True)
        self.sent, self.received = (last - first)[:, 0], jnp.sum(receive, axis=1)
        self.sends_from = jnp.cumsum(total[:, 0]) - total[:, 0] + first[:, 0]
        self.receives_at = jnp.cumsum(self.received) - self.received
        # Where my rows begin in the others' memory.
        self.lands_at, self.came_from = (
            lax.all_to_all(begin, axis, 0, 0, tiled=True) for begin in (self.receives_at, self.sends_from)
        )
        # They come sorted by where from, and then by expert.
        ends = jnp.cumsum(receive.reshape(-1))
        segment = jnp.searchsorted(ends, jnp.arange(room, dtype=ends.dtype), side="right", method="compare_all")
        self.ids = jnp.where(segment < ends.size, segment % own, own).astype(jnp.int32)[:, None]

    def there(self, rows: Float[Array, "r d"]) -> Float[Array, "room d"]:
        """This round's rows at the devices of their experts; zeros where nothing came."""
        empty = jnp.zeros((self.room, rows.shape[1]), rows.dtype)
        return ragged_all_to_all(
            rows, empty, self.sends_from, self.sent, self.lands_at, self.received, self.receives_at, self.axis
        )

    def back(self, rows: Float[Array, "room d"], into: Float[Array, "r d"]) -> Float[Array, "r d"]:
        """The way back, into the places that they had."""
        return ragged_all_to_all(
            rows, into, self.receives_at, self.received, self.came_from, self.sent, self.sends_from, self.axis
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _there_and_back(
    axis: str,
    room: int,
    run: Local,
    rows: Float[Array, "r d"],
    scale: Float[Array, "r 1"],
    experts: tuple[Any, ...],
    send: Int[Array, "n own"],
    rounds: Int[Array, ""],
) -> Float[Array, "r d"]:
    """Rows sorted by expert, `send` of them for each expert of each device, through their experts, times `scale`."""

    def turn(number: Array, back: Array) -> Array:
        now = _Round(send, number, rounds, room, axis)
        return now.back(run(now.there(rows), now.ids, now.there(scale), *experts), back)

    return lax.fori_loop(0, rounds, turn, jnp.zeros_like(rows))


def _forward(axis: str, room: int, run: Local, *args: Any) -> tuple[Array, tuple[Any, ...]]:
    return _there_and_back(axis, room, run, *args), args


def _backward(axis: str, room: int, run: Local, saved: tuple[Any, ...], grad: Array) -> tuple[Any, ...]:
    """The rows travel once more, so that nobody keeps what came; gradients of the experts add up over rounds."""
    rows, scale, experts, send, rounds = saved
    trained = [i for i, w in enumerate(experts) if w is not None and jnp.issubdtype(w.dtype, jnp.inexact)]

    def turn(number: Array, sums: tuple[Any, ...]) -> tuple[Any, ...]:
        now = _Round(send, number, rounds, room, axis)

        def here(rows: Array, scale: Array, weights: list[Array]) -> Array:
            own = dict(zip(trained, weights, strict=True))
            return run(rows, now.ids, scale, *(own.get(i, w) for i, w in enumerate(experts)))

        _, vjp = jax.vjp(here, now.there(rows), now.there(scale), [experts[i] for i in trained])
        of_rows, of_scale, of_weights = vjp(now.there(grad))
        return (
            now.back(of_rows, sums[0]),
            now.back(of_scale, sums[1]),
            jax.tree.map(jnp.add, sums[2], of_weights),
        )

    zeros = jax.tree.map(jnp.zeros_like, (rows, scale, [experts[i] for i in trained]))
    of_rows, of_scale, of_weights = lax.fori_loop(0, rounds, turn, zeros)
    found = dict(zip(trained, of_weights, strict=True))
    return of_rows, of_scale, tuple(found.get(i) for i in range(len(experts))), None, None


_there_and_back.defvjp(_forward, _backward)


def ragged_all_to_all(
    rows: Float[Array, "r d"],
    into: Float[Array, "q d"],
    begins: Int[Array, " n"],
    sizes: Int[Array, " n"],
    there: Int[Array, " n"],
    receives: Int[Array, " n"],
    here: Int[Array, " n"],
    axis: str,
) -> Float[Array, "q d"]:
    """`sizes` rows from `begins` on to each device, where they begin at `there`; `receives` come and begin at `here`.

    Where nothing comes, `into` stays. XLA has no ragged exchange on a CPU, and a GPU's is untried: there every device
    gathers all rows and keeps its own.
    """
    if platform.implementation() == "tpu":
        return lax.ragged_all_to_all(rows, into, begins, sizes, there, receives, axis_name=axis)
    all_rows = lax.all_gather(rows, axis)
    first = lax.all_to_all(begins, axis, 0, 0, tiled=True)
    offset = jnp.arange(len(into))[:, None] - here
    mine = (offset >= 0) & (offset < receives)
    source = jnp.argmax(mine, axis=1)
    row = jnp.take_along_axis(offset, source[:, None], axis=1)[:, 0] + first[source]
    return jnp.where(jnp.any(mine, axis=1)[:, None], all_rows[source, jnp.clip(row, 0, rows.shape[0] - 1)], into)
