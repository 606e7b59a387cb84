"""A model on disk in any layout, opened by one function.

The layouts: published (`huggingface`), a saved model (`store`), the same with its weights in Orbax arrays (`orbax`),
and a training run, of whose newest checkpoint the weights are.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tml_jax.checkpoint import huggingface, orbax, store
from tml_jax.checkpoint.voice import copy_voice
from tml_jax.checkpoint.weights import Weights, cast, flatten, fresh_params
from tml_jax.model.config import InteractionConfig, text_config_from_hf
from tml_jax.model.interaction import InteractionModel

Layout = Literal["published", "saved", "orbax", "run"]
# Of a run that began with a saved or published model, the dtypes in which that was stored.
DTYPES_FILE = "dtypes.json"
WEIGHTS_FOLDER = "weights"


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened model.

    Attributes:
      directory, layout: where it lies, and how.
      config: its sizes.
      weights: those that there are, by dotted path, not yet read.
      fresh: paths of those that there are not: the interaction heads of a model that was never taught.
      report: of a published checkpoint, what was found in it.
    """

    directory: pathlib.Path
    layout: Layout
    config: InteractionConfig
    weights: Weights
    fresh: Sequence[str] = ()
    report: huggingface.Report | None = None

    def filled(self, seed: int) -> Weights:
        """All weights; those that there are not are drawn."""
        return {**self.weights, **fresh_params(InteractionModel(self.config), self.fresh, seed)}

    @property
    def published(self) -> pathlib.Path:
        """The config.json that it was published with; the file need not be there."""
        return self.directory / (store.CONFIG_FILE if self.layout == "published" else store.PUBLISHED_FILE)

    @property
    def tokenizer(self) -> pathlib.Path:
        """Its tokenizer; the file need not be there."""
        return self.directory / store.TOKENIZER_FILE

    def published_config(self) -> dict[str, Any] | None:
        """What it was published with; None: it wasn't.

        Raises:
          ValueError: that is of a model of other sizes.
        """
        if not self.published.is_file():
            return None
        published = huggingface.read_json(self.published)
        if (text := text_config_from_hf(published)) != self.config.text:
            sizes = store.difference(dataclasses.asdict(text), dataclasses.asdict(self.config.text), "text")
            raise ValueError(
                f"{self.published} is of a model of other sizes: {sizes}; remove it to write a config.json without it."
            )
        return published

    def copy_along(self, target: pathlib.Path) -> None:
        """Copies the published config and the vocoder's voice, where they are there."""
        if self.published.is_file():
            shutil.copyfile(self.published, target / store.PUBLISHED_FILE)
        copy_voice(self.directory, target)


def write_dtypes(directory: pathlib.Path, weights: Weights) -> None:
    """Notes the dtypes in which weights are stored: a run that begins with them is exported in these."""
    dtypes = {path: np.dtype(weight.dtype).name for path, weight in weights.items()}
    (directory / DTYPES_FILE).write_text(json.dumps(dtypes, indent=1) + "\n")


def open_source(directory: str | os.PathLike[str], like: InteractionConfig | None = None) -> Source:
    """Opens a model in any layout.

    Args:
      directory: of the model, or of a training run.
      like: as `huggingface.HuggingFaceCheckpoint` takes it.

    Raises:
      ValueError: it holds none, or one that is damaged or of a foreign layout.
    """
    directory = pathlib.Path(directory)
    if (directory / "checkpoints").is_dir():
        return _open_run(directory)
    if not (directory / store.CONFIG_FILE).is_file():
        raise ValueError(f"{directory} holds no model: it has no {store.CONFIG_FILE}.")
    if huggingface.is_published(directory):
        checkpoint = huggingface.HuggingFaceCheckpoint(directory, like)
        report = checkpoint.report
        return Source(directory, "published", checkpoint.config, checkpoint.weights, report.fresh, report)
    if (directory / WEIGHTS_FOLDER).is_dir():
        config, weights = store.read_config(directory), orbax.open_arrays(directory / WEIGHTS_FOLDER)
        _check(directory, config, weights)
        return Source(directory, "orbax", config, weights)
    return Source(directory, "saved", *store.open_model(directory))


def _open_run(directory: pathlib.Path) -> Source:
    config, arrays = orbax.open_training(directory)
    _check(directory, config, arrays)
    weights: Weights = arrays
    if (directory / DTYPES_FILE).is_file():
        dtypes = huggingface.read_json(directory / DTYPES_FILE)
        weights = cast(arrays, lambda path: np.dtype(dtypes[path]))
    return Source(directory, "run", config, weights)


def _check(directory: pathlib.Path, config: InteractionConfig, weights: Weights) -> None:
    wanted = {path: x.shape for path, x in flatten(InteractionModel(config).abstract).items()}
    store.check_shapes(directory, {path: weight.shape for path, weight in weights.items()}, wanted)
