"""Pictures in OpenAI's protocols: PNG or JPEG files as data URLs."""

import base64
import binascii
import re
from typing import Any

from tml_jax.serve import intake
from tml_jax.serve.doors.protocol import ProtocolError, string

_DATA_URL = re.compile(r"data:image/(png|jpeg|jpg);base64,", re.IGNORECASE)


def read(fields: dict[str, Any], name: str, where: str) -> tuple[bytes, intake.FrameFormat]:
    """The picture in the field `name`, for `Session.push_frame`.

    Raises:
      ProtocolError: it is no data URL of a PNG or JPEG file.
    """
    url = string(fields, name, where)
    if not (head := _DATA_URL.match(url)):
        sentence = f"{where}{name} must be a data URL of a PNG or JPEG file: data:image/png;base64,..."
        raise ProtocolError("invalid_value", sentence, where + name)
    try:
        return base64.b64decode(url[head.end() :], validate=True), intake.FrameFormat.FILE
    except (binascii.Error, ValueError):
        raise ProtocolError("invalid_value", f"{where}{name} is not valid base64.", where + name) from None
