"""The static cost of both ways of bringing tokens to their experts, for groups of devices; which is chosen, and why."""

import dataclasses
from typing import Any

from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import platform
from pallas_kernels.expert_gemv.tpu import MAX_TOKENS
from pallas_kernels.grouped_matmul.workloads import TOP_K, D
from pallas_kernels.sharded_experts.cost import Exchange

# Tokens on a device: of a training step, of a long prompt, and of 64 sessions that decode on a group of eight.
WORKLOADS = {"train_8192": 8192, "prefill_2048": 2048, "decode_64": 8}
DEVICES = (2, 4, 8, 16, 32, 64)


def table(chip_name: str) -> tuple[str, list[dict[str, Any]]]:
    """A table to print, and its rows. The 276B model's routed experts in bfloat16, forward, on a chip.

    Raises:
      ValueError: unknown chip.
    """
    if chip_name not in platform.CHIPS:
        raise ValueError(f"There is no chip {chip_name!r}; expected one of {', '.join(platform.CHIPS)}.")
    chip = pltpu.get_tpu_info_for_chip(*platform.CHIPS[chip_name])
    lines = [f"{chip_name}: microseconds of links and memory, {D} wide, top-{TOP_K}"]
    lines.append(f"  {'workload':14} {'devices':>8} {'torus':>10} {'all_gather':>12} {'all_to_all':>12}  chosen")
    rows = []
    for name, tokens in WORKLOADS.items():
        for devices in DEVICES:
            call = Exchange(tokens, TOP_K, 2 * D, devices)
            gather, travel = (call.seconds(way, chip) for way in ("all_gather", "all_to_all"))
            few = tokens * devices <= MAX_TOKENS
            chosen = "all_gather" if few else call.cheaper(chip)
            sides = "x".join(map(str, call.sides(chip)))
            lines.append(
                f"  {name:14} {devices:8} {sides:>10} {gather * 1e6:12.1f} {travel * 1e6:12.1f}  {chosen}"
                + (" (few tokens decode together)" if few else "")
            )
            rows.append(
                dataclasses.asdict(call)
                | {"chip": chip_name, "workload": name, "few": few, "chosen": chosen}
                | {"all_gather_s": gather, "all_to_all_s": travel}
            )
    return "\n".join(lines), rows
