"""Two ways to bring tokens to the devices of their experts, and the results back. Each runs inside `jax.shard_map`.

Both are exact whatever the router chooses. `all_to_all` has room for `ROOM` times an even share of choices on each
device; when some device has more, all gather instead, a part of the tokens at a time, by a branch that every device
takes alike.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels import platform
from pallas_kernels.grouped_matmul import routing

# (tokens, ids of this device's experts, weights) -> the sum of their results, before sums over other devices.
Local = Callable[[Array, Array, Array], Array]
ROOM = 1.5


def room(choices: int) -> int:
    """Rows that a device has room for, where each device sends `choices` of them."""
    return -(-int(ROOM * choices) // 16) * 16


def own_ids(expert_ids: Int[Array, "t k"], own: int, axis: str) -> Int[Array, "t k"]:
    """Ids among this device's `own` experts; `own` for everybody else's."""
    ids = expert_ids - own * lax.axis_index(axis)
    return jnp.where((ids >= 0) & (ids < own), ids, own)


def gather(
    x: Float[Array, "t d"],
    expert_ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    own: int,
    axis: str,
    run: Local,
    rounds: int = 1,
) -> Float[Array, "t d"]:
    """All tokens of the group to all its devices; partial sums are added up on the way back.

    In several `rounds`, a part of the tokens at a time, it needs that much less memory.
    """

    def one(args: tuple[Array, Array, Array]) -> Array:
        x, ids, weights = (lax.all_gather(a, axis, tiled=True) for a in args)
        y = run(x, own_ids(ids, own, axis), weights)
        return lax.psum_scatter(y, axis, scatter_dimension=0, tiled=True)

    args = (x, expert_ids, weights)
    if rounds == 1:
        return one(args)
    split = jax.tree.map(lambda a: a.reshape(rounds, -1, *a.shape[1:]), args)
    return lax.map(jax.checkpoint(one), split).reshape(x.shape)


def all_to_all(
    x: Float[Array, "t d"],
    expert_ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    own: int,
    axis: str,
    run: Local,
    everywhere: Sequence[str],
) -> Float[Array, "t d"]:
    """Each choice to its expert's device and back; `everywhere`: all mesh axes that the call runs over."""
    devices = lax.axis_size(axis)
    order, inverse, sizes = routing.sort_by_expert(expert_ids, devices * own)
    send = sizes.reshape(devices, own)
    most = lax.pmax(jnp.max(lax.psum(jnp.sum(send, axis=1), axis)), tuple(everywhere))
    rows = room(order.size)

    def few(x: Array, weights: Array) -> Array:
        back = _there_and_back(routing.spread(x, order, inverse), send, rows, axis, run)
        y = routing.collect(back, order, inverse) * weights.reshape(-1, 1).astype(back.dtype)
        return routing.combine(y, expert_ids, devices * own)

    def many(x: Array, weights: Array) -> Array:
        return gather(x, expert_ids, weights, own, axis, run, rounds=math.gcd(x.shape[0], devices))

    # What the branches need for their gradients is computed again: else both would keep all of theirs.
    return lax.cond(most <= rows, jax.checkpoint(few), jax.checkpoint(many), x, weights)


def _there_and_back(
    rows: Float[Array, "r d"], send: Int[Array, "n own"], room: int, axis: str, run: Local
) -> Float[Array, "r d"]:
    """Rows sorted by expert, `send` of them for each expert of each device, through their experts."""
    receive = lax.all_to_all(send, axis, 0, 0, tiled=True)
    sizes = jnp.sum(send, axis=1), jnp.sum(receive, axis=1)
    begins = tuple(jnp.cumsum(size) - size for size in sizes)
    # Where my rows begin in the others' memory.
    there, here = (lax.all_to_all(begin, axis, 0, 0, tiled=True) for begin in (begins[1], begins[0]))
    came = ragged_all_to_all(rows, room, begins[0], sizes[0], there, sizes[1], axis)
    # They came sorted by where from, and then by expert.
    ends = jnp.cumsum(receive.reshape(-1))
    segment = jnp.searchsorted(ends, jnp.arange(room, dtype=ends.dtype), side="right", method="sort")
    own = send.shape[1]
    ids = jnp.where(segment < ends.size, segment % own, own).astype(jnp.int32)[:, None]
    y = run(came, ids, jnp.ones(ids.shape, rows.dtype))
    return ragged_all_to_all(y, rows.shape[0], begins[1], sizes[1], here, sizes[0], axis)


def ragged_all_to_all(
    rows: Float[Array, "r d"],
    room: int,
    begins: Int[Array, " n"],
    sizes: Int[Array, " n"],
    there: Int[Array, " n"],
    receives: Int[Array, " n"],
    axis: str,
) -> Float[Array, "room d"]:
    """`sizes` rows from `begins` on to each device, where they begin at `there`; zeros where nothing came.

    XLA has no ragged exchange on a CPU, and a GPU's is untried: there every device gathers all rows and keeps its own.
    """
    empty = jnp.zeros((room, rows.shape[1]), rows.dtype)
    if platform.implementation() == "tpu":
        return lax.ragged_all_to_all(rows, empty, begins, sizes, there, receives, axis_name=axis)
    all_rows = lax.all_gather(rows, axis)
    at, first = (lax.all_to_all(a, axis, 0, 0, tiled=True) for a in (there, begins))
    offset = jnp.arange(room)[:, None] - at
    mine = (offset >= 0) & (offset < receives)
    source = jnp.argmax(mine, axis=1)
    row = jnp.take_along_axis(offset, source[:, None], axis=1)[:, 0] + first[source]
    return jnp.where(jnp.any(mine, axis=1)[:, None], all_rows[source, jnp.clip(row, 0, rows.shape[0] - 1)], 0)
