"""What all launch commands share: how they start and fail, and the flags that mean the same everywhere."""

import atexit
import importlib.metadata
import os
import pathlib
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags

# A process that is silent for so long is dead, and ends all others, where the watchdog is not there yet or no more.
_HEARTBEAT_S = 50
# A flag belongs to the command that asks for it here, whose --help lists it.
flags.disclaim_key_flags()

_HELP = {"help": True, "helpshort": True, "h": True, "?": True, "helpfull": False}
_USAGE = 2


def run(main: Callable[[list[str]], None], *, at_once: bool = False) -> None:
    """Runs a command: help and version end with status 0, a wrong command line with 2, any other failure with 1.

    What the user can mend, a wrong flag or a ValueError or OSError of `main`, is told in a sentence.

    Args:
      main: the command.
      at_once: end the process after its exit handlers, without taking the interpreter apart. On a GPU, with
        many data workers, that hung for as long as it was watched, near a minute.
    """
    try:
        app.run(lambda argv: _guarded(main, argv), flags_parser=_parse)
    except SystemExit as end:
        if not at_once:
            raise
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1 if isinstance(end.code, str) else end.code or 0)


def _parse(argv: list[str]) -> list[str]:
    given = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    for argument in given:
        name = argument.lstrip("-") if argument.startswith("-") else ""
        if name in _HELP:
            app.usage(shorthelp=_HELP[name], writeto_stdout=True, exitcode=0)
        if name == "version":
            print(f"tml_jax {importlib.metadata.version('tml_jax')}")
            sys.exit(0)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _fail(" ".join(str(error).split()), _USAGE)


def _guarded(main: Callable[[list[str]], None], argv: list[str]) -> None:
    try:
        if len(argv) > 1:
            raise app.UsageError(f"Unexpected argument {argv[1]!r}; every option is a flag.")
        main(argv)
    except app.UsageError as error:
        _fail(str(error), _USAGE)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}." if error.filename else str(error), 1)
    except ValueError as error:
        _fail(str(error), 1)


def _fail(sentence: str, status: int) -> NoReturn:
    started = pathlib.Path(sys.argv[0]).absolute().with_suffix("")
    command = started.parent if started.name == "__main__" else started
    print(f"{command.parent.name}.{command.name}: {sentence}", file=sys.stderr)
    sys.exit(status)


def out_file(name: str, default: str | None, text: str) -> flags.FlagHolder:
    """Defines a flag that names a file to write, refused before the work where it could not be written."""
    holder = flags.DEFINE_string(name, default, text)
    flags.register_validator(name, _check_file)
    return holder


def out_folder(name: str, default: str | None, text: str, required: bool = False) -> flags.FlagHolder:
    """Defines a flag that names a folder to make or fill, refused before the work where it could not be."""
    holder = flags.DEFINE_string(name, default, text, required=required)
    flags.register_validator(name, _check_folder)
    return holder


def _check_file(name: str | None) -> bool:
    # A bucket, gs://..., is no path of this machine.
    if name and "://" not in name:
        path = pathlib.Path(name)
        if path.is_dir():
            raise flags.ValidationError(f"{path} is a folder, not a file to write.")
        if not path.parent.is_dir():
            raise flags.ValidationError(f"{path} cannot be written: there is no folder {path.parent}.")
        _check_allowed(path if path.exists() else path.parent)
    return True


def _check_folder(name: str | None) -> bool:
    if name and "://" not in name:
        path = pathlib.Path(name).absolute()
        nearest = next(place for place in (path, *path.parents) if os.path.lexists(place))
        if not nearest.is_dir():
            raise flags.ValidationError(f"{name} can be no folder: {nearest} is a file.")
        _check_allowed(nearest)
    return True


def _check_allowed(path: pathlib.Path) -> None:
    if not os.access(path, os.W_OK):
        raise flags.ValidationError(f"{path} must not be written by this user.")


def config(default: str) -> flags.FlagHolder:
    """Defines ``--config``."""
    return flags.DEFINE_string("config", default, "The experiment's file.")


def checkpoint(default: str | None = "checkpoints/inkling_tiny") -> flags.FlagHolder:
    """Defines ``--checkpoint``; a default of None stands for nothing to be stepped."""
    text = "Folder of the saved model." if default else "Folder of the saved model; without it nothing is stepped."
    return flags.DEFINE_string("checkpoint", default, text)


def mesh(otherwise: str) -> flags.FlagHolder:
    """Defines ``--mesh``, read by `mesh_shape`; `otherwise` says what an empty one stands for."""
    holder = flags.DEFINE_list("mesh", [], f"Sizes of (data, fsdp, expert, tensor); empty: {otherwise}.")
    flags.register_validator("mesh", _check_mesh)
    return holder


def _check_mesh(sizes: list[str]) -> bool:
    if sizes and not (len(sizes) == 4 and all(size.strip().isdigit() and int(size) for size in sizes)):
        raise flags.ValidationError(f"a mesh is four sizes of 1 and more, such as 1,1,4,2, not {','.join(sizes)}.")
    return True


def mesh_shape(holder: flags.FlagHolder) -> tuple[int, ...]:
    """The sizes that ``--mesh`` gives, or none."""
    return tuple(int(size) for size in holder.value)


def dtype() -> flags.FlagHolder:
    """Defines ``--dtype``."""
    return flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the model's weights and state.")


def weights() -> flags.FlagHolder:
    """Defines ``--weights``."""
    text = "int8: linear maps, experts and tables stay so in memory, whatever they are stored in; none: as --dtype."
    return flags.DEFINE_enum("weights", None, ["int8"], text)


def json_out() -> flags.FlagHolder:
    """Defines ``--json``."""
    return out_file("json", None, "Also write the figures here, as JSON.")


def seed(default: int, text: str) -> flags.FlagHolder:
    """Defines ``--seed``."""
    return flags.DEFINE_integer("seed", default, text, lower_bound=0, upper_bound=2**32 - 1)


def bank(default: str | None = "checkpoints/speech_bank") -> flags.FlagHolder:
    """Defines ``--bank``; a default of None stands for the experiment's own."""
    text = "Folder of the speech bank." if default else "Folder of the speech bank, where not the experiment's own."
    return flags.DEFINE_string("bank", default, text)


def chunk_ms() -> flags.FlagHolder:
    """Defines ``--chunk_ms``."""
    text = "Length of the pieces of sound that are sent."
    return flags.DEFINE_float("chunk_ms", 20.0, text, lower_bound=0.1, upper_bound=1000)


def pod() -> tuple[flags.FlagHolder, ...]:
    """Defines the flags by which a process finds the others of a pod, read by `join_pod`."""
    return (
        flags.DEFINE_bool("distributed", False, "Join the other hosts of a pod, which are found by themselves."),
        flags.DEFINE_string(
            "coordinator_address", None, "host:port of process 0, on hosts that do not find each other."
        ),
        flags.DEFINE_integer("num_processes", None, "Processes in all, with that address.", lower_bound=1),
        flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0 on.", lower_bound=0),
    )


def join_pod(holders: tuple[flags.FlagHolder, ...]) -> bool:
    """Joins the other processes, where there are any."""
    import jax  # --help does without

    distributed, *given = (holder.value for holder in holders)
    if any(value is None for value in given) and any(value is not None for value in given):
        raise app.UsageError("--coordinator_address, --num_processes and --process_id go together.")
    if not distributed and given[0] is None:
        return False
    jax.distributed.initialize(*given, heartbeat_timeout_seconds=_HEARTBEAT_S)
    return True
