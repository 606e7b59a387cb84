"""How the layers of a decoder are laid out for `lax.scan`.

The layers are split into a prefix, kept one by one, and a unit that repeats (Inkling: five local layers and a
global one), kept stacked and scanned over. Weights and session state use the same names for both.
"""

import dataclasses
import functools

from tml_jax.model.config import LayerType, MlpType, TextConfig


@dataclasses.dataclass(frozen=True)
class LayerGroup:
    """A single layer (`repeats` 0) or one position of the repeating unit (`repeats` layers, stacked).

    Attributes:
      name: of its weights and its state, e.g. "layer_0" or "unit_3".
      first: index of its first layer in the model; layer i of the stack is ``first + i * stride``.
    """

    name: str
    layer_type: LayerType
    mlp_type: MlpType
    first: int
    repeats: int
    stride: int

    def kind(self) -> tuple[LayerType, MlpType]:
        """What its layers are."""
        return self.layer_type, self.mlp_type

    def layers(self) -> tuple[int, ...]:
        """Model layer indices, in stacking order."""
        return tuple(self.first + i * self.stride for i in range(max(1, self.repeats)))


@functools.cache
def layer_plan(config: TextConfig) -> tuple[LayerGroup, ...]:
    """The prefix's layers, then the unit's: the split with the fewest groups, and repeats >= 2."""
    kinds = list(zip(config.layer_types, config.mlp_layer_types, strict=True))
    total = len(kinds)
    best = (total, total, 0)  # groups, prefix, period
    for period in range(1, total // 2 + 1):
        start = total - period
        while start >= period and kinds[start - period : start] == kinds[total - period :]:
            start -= period
        # The prefix may be any length; only whole units count.
        if total - start >= 2 * period:
            best = min(best, (start + period, start, period))
    _, prefix, period = best
    groups = [LayerGroup(f"layer_{i}", *kinds[i], i, 0, 0) for i in range(prefix)]
    repeats = (total - prefix) // period if period else 0
    groups += [LayerGroup(f"unit_{j}", *kinds[prefix + j], prefix + j, repeats, period) for j in range(period)]
    return tuple(groups)
