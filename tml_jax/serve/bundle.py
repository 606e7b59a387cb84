"""What a server runs: a model, its weights, its tokenizer and the shape of its stream."""

import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp

from tml_jax.executor.executor import Executor
from tml_jax.executor.live import StepModel
from tml_jax.streams.micro_turn import StreamSpec


@dataclasses.dataclass(frozen=True)
class ModelBundle:
    """A model that is ready to be served.

    Attributes:
      name: shown to clients.
      model: the functions. params: the weights.
      tokenizer: a `streams.text.Tokenizer`, or what has its methods.
      spec: the shape of the stream.
      executor: where it runs; its weights lie there.
    """

    name: str
    model: StepModel
    params: Any
    tokenizer: Any
    spec: StreamSpec
    executor: Executor = dataclasses.field(default_factory=Executor)


def load_bundle(
    checkpoint: str, executor: Executor | None = None, dtype: Any = "float32", int8: bool = False
) -> ModelBundle:
    """Reads a saved model.

    Args:
      checkpoint: its folder.
      executor: where it will run; None: on the default device.
      dtype: of its weights, its state and its arithmetic.
      int8: keep linear maps, experts and tables in memory as int8.

    Raises:
      ValueError: the folder holds no readable model, or one whose weights do not fit its config.
    """
    from tml_jax.checkpoint import store
    from tml_jax.model.interaction import InteractionModel

    folder, executor, dtype = pathlib.Path(checkpoint), executor or Executor(), jnp.dtype(dtype)
    if not folder.is_dir():
        raise ValueError(f"There is no checkpoint at {checkpoint}: give a folder that holds a saved model.")
    try:
        config, params, tokenizer = store.load_model(folder, dtype=dtype, mesh=executor.mesh, int8=int8)
    except ValueError:
        raise
    except Exception as error:  # any of the file formats' own errors: for the user they are one
        sentence = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"The checkpoint at {checkpoint} cannot be read: {sentence}") from error
    return ModelBundle(folder.name, InteractionModel(config, dtype), params, tokenizer, config.stream, executor)
