"""The message classes of ``proto/tml/interaction/v1/interaction.proto``, compiled when this module is imported.

No generated code is kept: the protoc that `grpcio-tools` carries turns the file into descriptors (some 20 ms) and
protobuf makes the classes, so a fresh clone needs no extra build step and the classes cannot lag behind the file.
Use them as ``protos.ConverseRequest(...)`` and ``protos.Decision.DECISION_LISTEN``.
"""

import pathlib
import tempfile
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal import enum_type_wrapper
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parent / "proto"
FILE = "tml/interaction/v1/interaction.proto"
PACKAGE = "tml.interaction.v1"
SERVICE = f"{PACKAGE}.InteractionService"
MAX_MESSAGE_BYTES = 8 << 20


def _compile() -> descriptor_pb2.FileDescriptorProto:
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "descriptors"
        arguments = ["protoc", f"--proto_path={ROOT}", f"--descriptor_set_out={out}", str(ROOT / FILE)]
        if protoc.main(arguments):
            raise ValueError(f"{ROOT / FILE} does not compile; protoc's message is above.")
        return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]


def _load() -> dict[str, Any]:
    file, pool = _compile(), descriptor_pool.Default()
    pool.Add(file)
    names: dict[str, Any] = {}
    for message in file.message_type:
        names[message.name] = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{message.name}"))
    for enum in file.enum_type:
        names[enum.name] = enum_type_wrapper.EnumTypeWrapper(pool.FindEnumTypeByName(f"{PACKAGE}.{enum.name}"))
    return names


_NAMES = _load()


def __getattr__(name: str) -> Any:
    try:
        return _NAMES[name]
    except KeyError:
        raise AttributeError(f"interaction.proto declares no {name!r}.") from None


def tables() -> dict[str, Any]:
    """The messages and enums as plain tables, for a reader that has no protoc: all that a codec must know.

    Returns:
      ``messages``: by name, a list of fields: number, name, type, ``of`` (the message or enum), and whether the field
      is left out of a message where it is not set (``optional``). ``enums``: by name, the names of its values.
    """
    messages, enums = {}, {}
    for name, kind in _NAMES.items():
        if isinstance(kind, enum_type_wrapper.EnumTypeWrapper):
            enums[name] = {str(number): value for value, number in kind.items()}
            continue
        messages[name] = [
            {
                "number": field.number,
                "name": field.name,
                "type": _TYPES[field.type],
                "of": (field.message_type or field.enum_type).name if field.message_type or field.enum_type else None,
                "optional": field.has_presence,
            }
            for field in kind.DESCRIPTOR.fields
        ]
    return {"messages": messages, "enums": enums}


_TYPES = {number: name[5:].lower() for name, number in descriptor_pb2.FieldDescriptorProto.Type.items()}


def converse_method(channel: Any) -> Any:
    """The `Converse` method of a `grpc` or `grpc.aio` channel."""
    return channel.stream_stream(
        f"/{SERVICE}/Converse",
        request_serializer=_NAMES["ConverseRequest"].SerializeToString,
        response_deserializer=_NAMES["ConverseResponse"].FromString,
    )


def server_info_method(channel: Any) -> Any:
    """The `GetServerInfo` method of a `grpc` or `grpc.aio` channel."""
    return channel.unary_unary(
        f"/{SERVICE}/GetServerInfo",
        request_serializer=_NAMES["GetServerInfoRequest"].SerializeToString,
        response_deserializer=_NAMES["GetServerInfoResponse"].FromString,
    )
