"""What the static bench takes for granted of a chip. Facts are of a jax device; a v5p's has two TensorCores."""

import dataclasses

from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import platform
from pallas_kernels.static.schedule import MATMUL_ROWS

# The smallest slice of each chip that the compiler knows.
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip as jax sees it, by the name that its topology begins with."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in TOPOLOGIES:
            raise ValueError(f"There is no chip {self.name!r}; expected one of {', '.join(TOPOLOGIES)}.")

    @property
    def info(self) -> pltpu.TpuInfo:
        """Facts of one TensorCore."""
        return pltpu.get_tpu_info_for_chip(*platform.CHIPS[self.name])

    @property
    def cores(self) -> int:
        """TensorCores of a device."""
        return self.info.num_cores

    @property
    def matmul_cycles(self) -> int:
        """Cycles that a matrix unit works on a `vmatmul`: a row a cycle, in units of 256 x 256 two."""
        return MATMUL_ROWS // (1 if self.info.mxu_column_size == 128 else 2)

    @property
    def flops_per_cycle(self) -> int:
        """Of one core, in bfloat16."""
        info = self.info
        return 2 * MATMUL_ROWS * info.mxu_column_size**2 * info.num_mxus // self.matmul_cycles

    @property
    def clock(self) -> float:
        """In Hz: the published peak over what the matrix units do in a cycle."""
        return self.info.bf16_ops_per_second / self.flops_per_cycle

    @property
    def flops_per_second(self) -> float:
        """Of the device, in bfloat16."""
        return float(self.info.bf16_ops_per_second * self.cores)

    @property
    def bytes_per_second(self) -> float:
        """Of the device's HBM."""
        return float(self.info.mem_bw_bytes_per_second * self.cores)
