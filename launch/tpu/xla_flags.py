"""Flags of the TPU compiler that a job runs with, each with its reason.

Of the sets that MaxText's public benchmarks use for models cut over `fsdp` (its `xla_flags_library`) those of v5p and
v6e are the ones that change what this project's libtpu makes of a loop of gathered layers (tested). The others are its
defaults by now, do nothing there, or trade one memory for another, which takes a chip to judge: see docs/tpu.md.
"""

from typing import NamedTuple


class XlaFlag(NamedTuple):
    """A flag of LIBTPU_INIT_ARGS, and what it is for."""

    flag: str
    reason: str


_GATHER_BESIDE_COMPUTE = (
    XlaFlag(
        "--xla_enable_async_all_gather=true",
        "A layer's weights are gathered over fsdp: in two halves, a start and a done, work fits between.",
    ),
    XlaFlag(
        "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
        "The next layer's gather is fused with this layer's matmuls, so that the links and the matrix units work at "
        "once. Both layers' weights are in memory then.",
    ),
)
XLA_FLAGS: dict[str, tuple[XlaFlag, ...]] = {
    "v5p": _GATHER_BESIDE_COMPUTE,
    "v6e": _GATHER_BESIDE_COMPUTE,
    # Its SparseCores run collectives beside the TensorCores by default.
    "tpu7x": (
        XlaFlag(
            "--xla_tpu_scoped_vmem_limit_kib=58368",
            "A gather in the embedding's backward pass takes 54 of a core's 64 MiB of VMEM; by default 32 are allowed, "
            "and the compiler refuses inkling_small's training step of 512 windows on 4x8x8.",
        ),
    ),
}


def init_args(kind: str) -> str:
    """LIBTPU_INIT_ARGS of a job on this accelerator."""
    return " ".join(flag.flag for flag in XLA_FLAGS[kind])
