"""What a server runs: a model, its weights, its tokenizer and the shape of its stream."""

import dataclasses
import pathlib
from typing import Any, Protocol

from tml_jax.streams.micro_turn import MicroTurnInput, MicroTurnOutput, StreamSpec


class StepModel(Protocol):
    """The part of `InteractionModel` that serving needs; all pure functions that `jax.jit` takes."""

    def init_state(self, num_slots: int) -> Any:
        """Empty conversations."""

    def reset(self, state: Any, mask: Any) -> Any:
        """Empties the slots where `mask` is True."""

    def step(self, params: Any, state: Any, inputs: MicroTurnInput, rng: Any) -> tuple[Any, MicroTurnOutput]:
        """One micro-turn of every slot."""


@dataclasses.dataclass(frozen=True)
class ModelBundle:
    """A model that is ready to be served.

    Attributes:
      name: shown to clients.
      model: the functions. params: the weights.
      tokenizer: a `streams.text.Tokenizer`, or what has its methods.
      spec: the shape of the stream.
    """

    name: str
    model: StepModel
    params: Any
    tokenizer: Any
    spec: StreamSpec


def load_bundle(checkpoint: str) -> ModelBundle:
    """Reads a saved model.

    Raises:
      ValueError: the folder holds no readable model, or one whose weights do not fit its config.
    """
    from tml_jax.checkpoint import store
    from tml_jax.model.interaction import InteractionModel

    folder = pathlib.Path(checkpoint)
    if not folder.is_dir():
        raise ValueError(f"There is no checkpoint at {checkpoint}: give a folder that holds a saved model.")
    try:
        config, params, tokenizer = store.load_model(folder)
    except ValueError:
        raise
    except Exception as error:  # any of the file formats' own errors: for the user they are one
        sentence = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"The checkpoint at {checkpoint} cannot be read: {sentence}") from error
    return ModelBundle(folder.name, InteractionModel(config), params, tokenizer, config.stream)
