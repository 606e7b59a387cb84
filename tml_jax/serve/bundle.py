"""What a server runs: a model, its weights, its tokenizer and the shape of its stream."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from tml_jax.executor.checksum import checksum
from tml_jax.executor.executor import Executor
from tml_jax.executor.live import StepModel
from tml_jax.serve.standing import View
from tml_jax.streams import magnitudes, vocoder
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
      config: what else says how it computes: its sizes, its constants, its dtype.
      view: how much it sees of a conversation; None: all of it.
      voice: weights for the vocoder; None: it plays any voice.
    """

    name: str
    model: StepModel
    params: Any
    tokenizer: Any
    spec: StreamSpec
    executor: Executor = dataclasses.field(default_factory=Executor)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    view: View | None = None
    voice: magnitudes.Weights | None = None

    def identity(self, state: Mapping[str, str]) -> dict[str, Any]:
        """All that a conversation with it depends on, of plain values; `state` is how its states are laid out.

        Two servers for which it is equal go on with each other's sessions, whatever the model is called there.
        """
        known = {
            "stream": dataclasses.asdict(self.spec),
            "config": dict(self.config),
            "state": dict(state),
            "tokenizer checksum": self.tokenizer.checksum,
            "weights checksum": checksum(self.executor, self.params),
        }
        if self.voice is not None:
            known["voice checksum"] = magnitudes.checksum(self.voice)
        return json.loads(json.dumps(known))  # tuples are lists where they were kept


def difference(there: Any, here: Any, name: str = "") -> str:
    """The first thing in which two identities differ, in words; empty where none does."""
    if isinstance(there, list) and isinstance(here, list):
        there, here = dict(enumerate(there)), dict(enumerate(here))
    if isinstance(there, dict) and isinstance(here, dict):
        found = (difference(there.get(key), here.get(key), f"{name} {key}") for key in there | here)
        return next(filter(None, found), "")
    return "" if there == here else f"{name.strip()} is {_word(there)} there and {_word(here)} here"


def _word(value: Any) -> str:
    return "not known" if value is None else str(value)[:60]


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
    from tml_jax.checkpoint.voice import read_voice
    from tml_jax.model.interaction import InteractionModel

    folder, executor, dtype = pathlib.Path(checkpoint), executor or Executor(), jnp.dtype(dtype)
    if not folder.is_dir():
        raise ValueError(f"There is no checkpoint at {checkpoint}: give a folder that holds a saved model.")
    try:
        config, params, tokenizer = store.load_model(folder, dtype=dtype, mesh=executor.mesh, int8=int8)
        voice = read_voice(folder, config.stream)
    except ValueError:
        raise
    except Exception as error:  # any of the file formats' own errors: for the user they are one
        sentence = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"The checkpoint at {checkpoint} cannot be read: {sentence}") from error
    known = config.to_json() | {"dtype": dtype.name, "int8": int8}
    known.pop("stream")
    model = InteractionModel(config, dtype)
    view = View(config.state.sinks, config.state.global_window)
    return ModelBundle(
        folder.name, model, params, tokenizer, config.stream, executor, known, view, voice and vocoder.placed(voice)
    )
