"""Muon's orthogonalisation of a model's matrices, wherever they lie on a mesh (Jordan et al. 2024).

A weight is a stack of matrices: of layers, of experts, of the two planes of a gate. On a mesh each matrix may be cut,
and there may be copies of it. So the devices exchange parts until each holds whole matrices of its own, an equal
number; it orthogonalises these alone, and they go back the way they came. Nothing is computed twice that could be
shared out, and no device ever holds more matrices than its share.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from tml_jax import sharding

# The quintic that was tuned for five turns (kellerjordan.github.io/posts/muon).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
TURNS = 5
# Values of matrices that are orthogonalised at once.
_CHUNK = 2**26
# Empty matrices that a device may get so that all get as many, beside each real one.
_EMPTY = 8

Roles = tuple[tuple[int, ...], tuple[int, ...]]
"""The axes of a weight that go into its matrices and those that come out; the rest count matrices."""


def newton_schulz(x: Float[Array, "*b m n"]) -> Float[Array, "*b m n"]:
    """Moves the singular values of matrices to near one, in x's dtype; the fewer multiplications where m <= n."""
    norm = jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=(-2, -1), keepdims=True))
    a, b, c = _COEFFICIENTS

    def turn(_: int, x: Array) -> Array:
        gram = jnp.einsum("...ik,...jk->...ij", x, x)
        return a * x + (b * gram + c * gram @ gram) @ x

    # A loop that stays one: unrolled it compiles half as long again and runs no faster.
    return lax.fori_loop(0, TURNS, turn, x / (norm + 1e-8).astype(x.dtype))


@dataclasses.dataclass(frozen=True)
class _Weight:
    """How the matrices of a weight lie.

    Its axes are ordered as [*stack, *rows, *columns], so that there are no more rows than columns; `cuts` are the mesh
    axes by which rows and columns are cut, `by_axis` those of each of its axes.
    """

    stack: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    size: tuple[int, int]
    cuts: tuple[tuple[str, ...], tuple[str, ...]]
    by_axis: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, shape: Sequence[int], roles: Roles, axes: Sequence[str | None], mesh: Any) -> "_Weight":
        by_axis = sharding.cuts(axes, shape, mesh) if mesh else ((),) * len(shape)
        sides = []
        for side in roles:
            cut = tuple(name for i in side for name in by_axis[i])
            sides.append((math.prod(shape[i] for i in side), cut, tuple(side)))
        (m, row_cut, rows), (n, column_cut, columns) = sorted(sides)
        stack = tuple(i for i in range(len(shape)) if i not in rows + columns)
        return cls(stack, rows, columns, (m, n), (row_cut, column_cut), by_axis)

    @property
    def kind(self) -> Any:
        """Weights of one kind are orthogonalised together."""
        stack = tuple(name for i in self.stack for name in self.by_axis[i])
        return self.size, self.cuts, stack

    def matrices(self, x: Array) -> Array:
        """This device's part of the weight as [matrices, rows, columns]."""
        count, rows, columns = (math.prod(x.shape[i] for i in part) for part in (self.stack, self.rows, self.columns))
        return x.transpose(self.stack + self.rows + self.columns).reshape(count, rows, columns)

    def weight(self, matrices: Array, like: Array) -> Array:
        """The way back."""
        order = self.stack + self.rows + self.columns
        y = matrices.reshape([like.shape[i] for i in order])
        return y.transpose([order.index(i) for i in range(len(order))])


def orthogonalise(
    weights: Sequence[Float[Array, "..."]], roles: Sequence[Roles], axes: Sequence[Sequence[str | None]], dtype: Any
) -> list[Float[Array, "..."]]:
    """Orthogonalises the matrices of weights (their updates), each scaled by ``sqrt(max(1, outputs / inputs))``.

    Args:
      weights: arrays of any shapes. roles: of each, which axes are its matrices'. axes: their logical axes.
      dtype: of the arithmetic.

    Returns:
      Arrays of the same shapes, dtypes and places.
    """
    mesh = sharding.current_mesh()
    lie = [_Weight.of(x.shape, r, a, mesh) for x, r, a in zip(weights, roles, axes, strict=True)]
    kinds: dict[Any, list[int]] = {}
    for i, weight in enumerate(lie):
        kinds.setdefault(weight.kind, []).append(i)
    found: dict[int, Array] = {}
    for indices in kinds.values():
        mine = [lie[i] for i in indices]
        run = functools.partial(_of_a_kind, weights=mine, dtype=dtype, sizes=dict(mesh.shape) if mesh else {})
        if mesh is not None:
            specs = tuple(PartitionSpec(*(cut or None for cut in weight.by_axis)) for weight in mine)
            run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False)
        found |= dict(zip(indices, run(*(weights[i] for i in indices)), strict=True))
    return [found[i] * _gain(x.shape, r) for i, (x, r) in enumerate(zip(weights, roles, strict=True))]


def _gain(shape: Sequence[int], roles: Roles) -> float:
    inputs, outputs = (math.prod(shape[i] for i in side) for side in roles)
    return math.sqrt(max(1.0, outputs / inputs))


def _of_a_kind(*parts: Array, weights: Sequence[_Weight], dtype: Any, sizes: dict[str, int]) -> tuple[Array, ...]:
    """This device's parts of weights of one kind, orthogonalised; `sizes`: of the mesh's axes."""
    stacks = [weight.matrices(part.astype(dtype)) for weight, part in zip(weights, parts, strict=True)]
    x = jnp.concatenate(stacks)
    row_cut, column_cut = weights[0].cuts
    used = (*row_cut, *column_cut, *weights[0].kind[2])
    copies = tuple(name for name, size in sizes.items() if size > 1 and name not in used)
    shares = math.prod(sizes[name] for name in row_cut + column_cut)
    while copies and shares * math.prod(sizes[name] for name in copies) > _EMPTY * len(x):
        copies = copies[:-1]
    shares *= math.prod(sizes[name] for name in copies)
    x = jnp.pad(x, ((0, -len(x) % shares), (0, 0), (0, 0)))
    if copies:  # every copy has all of them, and takes its share
        own = len(x) // math.prod(sizes[name] for name in copies)
        x = lax.dynamic_slice_in_dim(x, lax.axis_index(copies) * own, own)
    cuts = [(names, side) for names, side in ((row_cut, 1), (column_cut, 2)) if names]
    for names, side in cuts:
        # Seen through, the parts would keep their weights' layouts, and XLA refuses an all-to-all of different ones.
        x = lax.all_to_all(lax.optimization_barrier(x), names, 0, side, tiled=True)
    x = _in_chunks(x)
    for names, side in reversed(cuts):
        x = lax.all_to_all(x, names, side, 0, tiled=True)
    if copies:
        x = lax.all_gather(x, copies, tiled=True)
    ends = [sum(len(stack) for stack in stacks[: i + 1]) for i in range(len(stacks))]
    pieces = (x[end - len(stack) : end] for end, stack in zip(ends, stacks, strict=True))
    return tuple(
        weight.weight(piece, part).astype(part.dtype)
        for weight, piece, part in zip(weights, pieces, parts, strict=True)
    )


def _in_chunks(x: Float[Array, "b m n"]) -> Float[Array, "b m n"]:
    """`newton_schulz`, with the intermediate results of a few matrices in memory at a time."""
    count = len(x)
    most = max(1, _CHUNK // math.prod(x.shape[1:]))
    size = max(n for n in range(1, count + 1) if count % n == 0 and n <= most)
    if size == count:
        return newton_schulz(x)
    return lax.map(newton_schulz, x.reshape(-1, size, *x.shape[1:])).reshape(x.shape)
