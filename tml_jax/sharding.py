"""Logical axes to mesh axes, in one declaration.

Weights (`model.primitives.Declare`), session state (`model.state.declare_state`) and batches name their
logical axes where they are declared; `RULES` says which mesh axes each is cut over. A mesh always has the four
axes of `MESH_AXES`; a single device is the mesh 1x1x1x1. An axis is cut over as many of its mesh axes, from the first
on, as divide it, and as no earlier axis of the array has taken.

So tokens are cut along time (`sequence`) over what their batch leaves: a batch of fewer windows than devices is cut
over the first mesh axes, and each window over the others. Weights lie as ever. What a token needs of those before it
comes from the devices before (`before`, `beginning`).
"""

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "expert", "tensor")

# logical axis -> mesh axes. `slot` (serving) and `batch` (training) are the independent conversations, `sequence` their
# tokens and all else that goes along time. Weights that `fsdp` cuts along `embed` are gathered before they are used;
# those that aren't an expert's are cut over `expert` as well, so that no device holds or updates what another one does.
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "sequence": ("data", "fsdp", "expert"),
    "slot": ("data", "fsdp", "expert"),
    "embed": ("fsdp", "expert"),
    "embed_by_fsdp": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "expert": ("expert",),
    "expert_mlp": ("tensor",),
}


def make_mesh(shape: Sequence[int] = (), devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of (data, fsdp, expert, tensor); the empty shape puts every device on `data`.

    On a TPU each axis is laid along axes of the torus, so that a collective's neighbours are neighbours. Devices of
    several slices differ along the outer part of `data` alone: the network between slices, much slower than that within
    one, then carries nothing but sums of gradients.

    Raises:
      ValueError: the shape's product isn't the number of devices, `data` isn't cut evenly over the slices, or an axis
        can't be laid on the torus.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = tuple(shape) or (len(devices), 1, 1, 1)
    if len(shape) != len(MESH_AXES) or math.prod(shape) != len(devices):
        raise ValueError(
            f"Mesh {shape} must give {len(MESH_AXES)} sizes {MESH_AXES} whose product is the {len(devices)} devices."
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if shape[0] % slices:
        raise ValueError(f"Mesh {shape} must cut `data`, its first size, evenly over the {slices} slices.")
    try:
        if slices > 1:
            within, between = (shape[0] // slices, *shape[1:]), (slices, 1, 1, 1)
            placed = mesh_utils.create_hybrid_device_mesh(within, between, devices)
        else:
            placed = mesh_utils.create_device_mesh(shape, devices)
    except (NotImplementedError, ValueError, AssertionError) as error:  # AssertionError: no whole cuboid
        raise ValueError(
            f"Mesh {shape} doesn't lie on these {len(devices)} devices: each size must be a product of physical axes."
        ) from error
    return Mesh(placed, MESH_AXES)


def mesh_axes(axis: str | None, size: int, mesh: Mesh | AbstractMesh, taken: Collection[str] = ()) -> tuple[str, ...]:
    """The mesh axes that a dimension of this logical axis and size is cut over; none where there is nothing to cut.

    `taken` are those that the array's earlier dimensions are cut over.
    """
    axes = tuple(a for a in RULES.get(axis or "", ()) if a not in taken)
    if axis == "embed" and mesh.shape["fsdp"] == 1:  # weights lie as they are used
        return ()
    while axes and size % math.prod(mesh.shape[a] for a in axes):
        axes = axes[:-1]
    return axes if math.prod(mesh.shape[a] for a in axes) > 1 else ()


def cuts(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh) -> tuple[tuple[str, ...], ...]:
    """The mesh axes that each dimension of an array with these logical axes is cut over."""
    found: tuple[tuple[str, ...], ...] = ()
    for axis, size in zip(axes, shape, strict=True):
        found += (mesh_axes(axis, size, mesh, sum(found, ())),)
    return found


def partition_spec(axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The spec of an array whose dimensions have these logical axes."""
    return PartitionSpec(*(cut or None for cut in cuts(axes, shape, mesh)))


def sequence_axes(shape: Sequence[int]) -> tuple[str, ...]:
    """The mesh axes that the second dimension of activations [B, T, ...] is cut over, of the mesh in use."""
    mesh = current_mesh()
    return () if mesh is None else cuts(("batch", "sequence"), shape[:2], mesh)[1]


def num_parts(shape: Sequence[int]) -> int:
    """Into how many parts that dimension is cut."""
    mesh = current_mesh()
    return 1 if mesh is None else math.prod(mesh.shape[a] for a in sequence_axes(shape))


def shardings(axes: Any, abstract: Any, mesh: Mesh) -> Any:
    """NamedShardings for a tree of arrays (or ShapeDtypeStructs) and the like tree of their logical axes (tuples)."""
    return jax.tree.map(lambda x, a: NamedSharding(mesh, partition_spec(a, x.shape, mesh)), abstract, axes)


def leading(axis: str, tree: Any) -> Any:
    """Logical axes for a tree of arrays that have only their first dimension cut, such as a batch."""
    return jax.tree.map(lambda x: (axis, *(None,) * (len(x.shape) - 1)), tree)


def current_mesh() -> AbstractMesh | None:
    """The mesh in use (`jax.set_mesh`), or None where there is one device or none was set."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def on_each_device(
    f: Callable[..., Any], args: tuple[Any, ...], axes: tuple[Any, ...], out_axes: Any, out: Any = None
) -> Any:
    """Runs `f` on each device's own part of its arguments (`jax.shard_map`); with one device, just runs it.

    Args:
      f: what needs nothing from other devices, or asks for it (`before`).
      args: arrays, or trees of arrays. axes: their logical axes, as tuples. out_axes: the same of what `f` returns.
      out: of the shapes that `f` returns, with all devices' parts; None: those that it returns for all of `args`.
    """
    mesh = current_mesh()
    if mesh is None:
        return f(*args)

    def specs(tree: Any, axes: Any) -> Any:
        return jax.tree.map(lambda x, a: partition_spec(a, x.shape, mesh), tree, axes)

    out_specs = specs(jax.eval_shape(f, *args) if out is None else out, out_axes)
    return jax.shard_map(f, mesh=mesh, in_specs=specs(args, axes), out_specs=out_specs, check_vma=False)(*args)


def before(x: jax.Array, size: int, axes: tuple[str, ...]) -> jax.Array:
    """Within `on_each_device`, the `size` tokens before a device's own; zeros before the first of all.

    Args:
      x: [B, T, ...], a device's own tokens. size: no more than all other devices have.
      axes: the mesh axes that tokens are cut over.

    Returns:
      [B, size, ...].
    """
    devices, own = lax.axis_size(axes), x.shape[1]
    parts = []
    for hop in range(-(-size // own), 0, -1):
        last = lax.slice_in_dim(x, max(hop * own - size, 0), own, axis=1)
        parts.append(lax.ppermute(last, axes, [(i, i + hop) for i in range(devices - hop)]))
    return jnp.concatenate(parts, axis=1)


def beginning(x: jax.Array, size: int, axes: tuple[str, ...]) -> jax.Array:
    """Within `on_each_device`, the first `size` of all tokens, [B, size, ...]; arguments as of `before`."""
    x, index = x[:, :size], lax.axis_index(axes)
    own = x.shape[1]
    holders = -(-size // own)
    buffer = jnp.zeros((x.shape[0], holders * own, *x.shape[2:]), x.dtype)
    buffer = lax.dynamic_update_slice_in_dim(buffer, x, jnp.minimum(index, holders - 1) * own, axis=1)
    return lax.psum(jnp.where(index < holders, buffer[:, :size], 0), axes)


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Pins an activation's sharding where a mesh is in use; otherwise does nothing."""
    mesh = current_mesh()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition_spec(axes, x.shape, mesh)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def whole(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """A weight gathered over `embed`, for the arithmetic; its gradient is added up and cut at once (reduce-scatter).

    Both go by `fsdp` alone in between: parts as small as both axes make are no whole tiles of a TPU, which would rather
    add up all of them everywhere.
    """
    return constrain(_by_fsdp(x, axes), [None if axis == "embed" else axis for axis in axes])


def _by_fsdp(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    return constrain(x, ["embed_by_fsdp" if axis == "embed" else axis for axis in axes])


def _cut_gradient(axes: Sequence[str | None], _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (constrain(_by_fsdp(gradient, axes), axes),)


whole.defvjp(lambda x, axes: (whole(x, axes), None), _cut_gradient)
