"""Where programs run: a mesh of devices, the implementation of the ops, and what has been compiled for them.

Training, evaluation, serving, the benches and the ahead-of-time compiler hand their pure functions to an `Executor` and
run what it gives back. So one place says how arrays lie on the mesh and with which options XLA compiles, and the
program that is compiled ahead of time is the one that runs.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from pallas_kernels import platform
from tml_jax import sharding
from tml_jax.executor.lockstep import Lockstep

# cuBLAS's own choice for each product: to try Triton kernels for all of them takes longer than a short run gains.
_CUDA_OPTIONS = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}


class _Compilations:
    """Counts what XLA compiles in this process."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1


compilations = _Compilations()


class Executor:
    """A mesh and how programs run on it.

    Args:
      mesh: the devices, as (data, fsdp, expert, tensor); None: the default device alone. They may be those of a slice
        that isn't there (`perf.aot`): then programs can be lowered and compiled only.
      implementation: of the ops; None: that of the devices' platform. It is an argument of each program: two executors
        share nothing that is compiled.
      lockstep: of the processes whose devices the mesh has, where one of them says what runs; None: all of them know.
    """

    def __init__(
        self,
        mesh: Mesh | None = None,
        implementation: platform.Implementation | None = None,
        lockstep: Lockstep | None = None,
    ) -> None:
        self.mesh = sharding.make_mesh((1, 1, 1, 1), jax.devices()[:1]) if mesh is None else mesh
        self.implementation, self.lockstep = implementation, lockstep

    @classmethod
    def of_shape(cls, shape: Sequence[int], lockstep: Lockstep | None = None) -> "Executor":
        """On a mesh of these four sizes over the first devices; on the first device alone where there are none.

        Raises:
          ValueError: there are not so many devices, or a process of a pod has none of them.
        """
        count = math.prod(shape)
        if count > jax.device_count():
            raise ValueError(f"Mesh {tuple(shape)} needs {count} devices; there are {jax.device_count()}.")
        devices = jax.devices()[:count]
        if (processes := jax.process_count()) > len({device.process_index for device in devices}):
            raise ValueError(
                f"Mesh {tuple(shape)} needs devices of all {processes} processes, which have {jax.device_count()}."
            )
        return cls(sharding.make_mesh(shape, devices), lockstep=lockstep)

    @property
    def platform(self) -> str:
        """The devices' platform, such as "cpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Within it functions are traced for this mesh and implementation."""
        forced = contextlib.nullcontext() if self.implementation is None else platform.forced(self.implementation)
        with jax.set_mesh(self.mesh), forced:
            yield

    def sharding(self, axes: Sequence[str | None] = (), shape: Sequence[int] = ()) -> NamedSharding:
        """Of an array with these logical axes and this shape; of an array of any rank whose first axes they are.

        Without arguments: a copy on each device.
        """
        return NamedSharding(self.mesh, sharding.partition_spec(axes, shape, self.mesh))

    def shardings(self, axes: Any, abstract: Any) -> Any:
        """Of a tree of arrays (or ShapeDtypeStructs) and the like tree of their logical axes."""
        return sharding.shardings(axes, abstract, self.mesh)

    def abstract(self, tree: Any, axes: Any) -> Any:
        """Shapes, dtypes and shardings of a tree of arrays, nothing allocated."""
        placed = self.shardings(axes, tree)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, placed)

    def program(
        self,
        function: Callable[..., Any],
        *,
        donate: int | Sequence[int] = (),
        in_shardings: Any = None,
        out_shardings: Any = None,
        options: dict[str, bool | int] | None = None,
    ) -> "Program":
        """Compiles `function` for this executor, at its first call or by `Program.lower`.

        Args:
          function: pure, of arrays.
          donate: arguments whose memory the result takes over.
          in_shardings, out_shardings: as `jax.jit` takes them; None: of arguments their own, of results XLA's choice.
          options: of the compiler, beside the executor's own.
        """
        own = _CUDA_OPTIONS if self.platform in ("gpu", "cuda") else {}
        named = {
            "in_shardings": in_shardings,
            "out_shardings": out_shardings,
            "compiler_options": own | (options or {}),
        }
        given = {name: value for name, value in named.items() if value}
        # A function object of its own: jit's cache is keyed by it, and not by what is entered while tracing.
        return Program(self, jax.jit(lambda *arguments: function(*arguments), donate_argnums=donate, **given))


class Program:
    """A function compiled for an executor; called like the function."""

    def __init__(self, executor: Executor, jitted: Any) -> None:
        self._executor, self._jitted = executor, jitted

    def __call__(self, *arguments: Any) -> Any:
        """Runs it."""
        with self._executor.entered():
            return self._jitted(*arguments)

    def lower(self, *arguments: Any, platforms: tuple[str, ...] | None = None) -> jax.stages.Lowered:
        """Lowered for these arrays or ShapeDtypeStructs; nothing runs. `platforms`: other ones than the mesh's."""
        with self._executor.entered():
            return self._jitted.trace(*arguments).lower(lowering_platforms=platforms)
