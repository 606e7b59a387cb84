"""Which weights of a model are int8 where it is stored or served so: its linear maps and tables.

Those of a matrix share a scale along its input axes, as its declaration says (`InteractionModel.matrices`), those of a
table along a row: layers and experts never share one.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from pallas_kernels.int8 import Int8Weight
from tml_jax.model.interaction import InteractionModel

# Of what is no matrix, these are worth it. The router, which decides by small differences, and the attention profiles
# are small and keep their dtype, as norms and convolutions do.
_TABLES = ("text.table", "audio.table", "transformer.unembed")


def shared_axes(model: InteractionModel) -> dict[str, tuple[int, ...]]:
    """Of each weight that is int8, by dotted path, the axes along which its values share a scale."""
    matrices = traverse_util.flatten_dict(model.matrices, sep=".")
    axes = {path: roles[0] for path, roles in matrices.items() if roles is not None}
    shapes = traverse_util.flatten_dict(model.abstract, sep=".")
    return axes | {path: (len(shapes[path].shape) - 1,) for path in _TABLES}


def scale_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scale of a weight whose values share one along `axes`."""
    return tuple(1 if i in axes else size for i, size in enumerate(shape))


def as_int8(model: InteractionModel) -> InteractionModel:
    """The same model with int8 weights, as its `abstract` and `axes` say: to be run, and not trained."""
    abstract, axes = (traverse_util.flatten_dict(tree, sep=".") for tree in (model.abstract, model.axes))
    for path, along in shared_axes(model).items():
        x, dtype = abstract[path], np.dtype(model.dtype)
        scale = jax.ShapeDtypeStruct(scale_shape(x.shape, along), jnp.float32)
        abstract[path] = Int8Weight(jax.ShapeDtypeStruct(x.shape, jnp.int8), scale, dtype)
        axes[path] = Int8Weight(axes[path], axes[path], dtype)
    new = copy.copy(model)
    new.abstract, new.axes = (traverse_util.unflatten_dict(flat, sep=".") for flat in (abstract, axes))
    return new
