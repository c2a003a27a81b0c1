"""A proposal -> a device file with a comment above each key, which `check` accepts. Pure."""

import json
from collections.abc import Iterator

import msgspec

from edge_runtime.bringup.proposal import Proposal


class DeviceFile(msgspec.Struct, kw_only=True):
    """The content of the file.

    Attributes:
        id: of the device.
        source: the keys of the source beside those of the proposal: `type`, and `port` or `topics` and the like.
        proposal: format, fields, time and key.
        bundle: its value in the file; None without a model.
        model: the name of the model.
        channels: the channels of the bundle with their units, for a comment.
        window: a sentence on the bundle's window, for a comment.
        upstream: the broker that predictions go to.
        http: whether the status page is wanted.
    """

    id: str
    source: dict[str, object]
    proposal: Proposal
    bundle: str | None
    model: str
    channels: tuple[str, ...] = ()
    window: str = ""
    upstream: str = "mqtt://localhost:1883"

    def text(self) -> str:
        """The whole file."""
        return "\n".join([*self._head(), *self._source(), *self._model(), *self._upstream(), ""])

    def _head(self) -> Iterator[str]:
        yield "# Every key is explained in docs/configuration.md. A line such as `# qos = 1` shows the default."
        yield "# Look at it with `edge-runtime check`, and at what the source sends with `edge-runtime try`."
        yield ""
        if self.bundle is None:
            yield "# There is no model yet: `edge-runtime record` works without one. For the first model take this line"
            yield "# out, and the marks in front of the [[model]] below."
            yield "model = []"
            yield ""
        yield "[device]"
        yield "# The name of this device stands in every topic. No two devices of one broker may share it."
        yield f"id = {_text(self.id)}"
        yield ""

    def _source(self) -> Iterator[str]:
        made = self.proposal
        yield "[[source]]"
        yield "# Models call this source by its name."
        yield 'name = "sensor"'
        for key, value in self.source.items():
            yield f"# {_ABOUT[key]}"
            yield f"{key} = {_value(value)}"
        for doubt in made.doubts:
            yield f"# LOOK AT THIS: {doubt}"
        if made.format is not None:
            yield "# How a reading is written."
            yield f"format = {_text(made.format)}"
        if made.fields:
            yield "# The columns, in order; _ is one that nothing reads."
            yield f"fields = {_value(list(made.fields))}"
        if made.fields and made.delimiter != ",":
            yield "# What stands between two columns."
            yield f"delimiter = {_text(made.delimiter)}"
        if made.time is not None:
            yield "# The field with the time of measurement."
            yield f"time = {_text(made.time)}"
        if made.time_unit != "s":
            yield "# The unit of times that are numbers."
            yield f"time_unit = {_text(made.time_unit)}"
        if made.key is not None and "{key}" not in str(self.source.get("topics", "")):
            yield "# The field that tells one stream from another; each has a window of its own."
            yield f"key = {_text(made.key)}"
        yield ""

    def _model(self) -> Iterator[str]:
        if self.channels:
            yield f"# The bundle wants {', '.join(self.channels)}{self.window}."
        if self.bundle is None:
            yield "# There is no bundle yet. When there is one, take off the marks:"
            yield "# [[model]]"
            yield f"# name = {_text(self.model)}"
            yield '# bundle = "model.onnx"'
            yield '# source = "sensor"'
        else:
            yield "[[model]]"
            yield "# The name of the model stands in the topic of its predictions."
            yield f"name = {_text(self.model)}"
            yield "# A bundle file, or the name of a model in the model store."
            yield f"bundle = {_text(self.bundle)}"
            yield 'source = "sensor"'
            yield "# always, change (verdicts that are new) or alarm."
            yield '# publish = "always"'
        yield ""

    def _upstream(self) -> Iterator[str]:
        yield "[upstream]"
        yield "# The broker that predictions go to; mqtts:// for TLS."
        yield f"url = {_text(self.upstream)}"
        yield "# The login, where the broker asks for one: a file whose first line is the password."
        yield '# username = "device"'
        yield '# password_file = "/etc/edge-runtime/broker.password"'
        yield ""
        yield "# A status page on http://127.0.0.1:8080, of this machine only. Take off the mark to have it."
        yield "# [http]"


_ABOUT = {
    "type": "Where readings come from.",
    "port": "The name below /dev/serial/by-id stays the same whichever socket the plug goes into.",
    "baudrate": "The speed of the line, in bit/s.",
    "topics": "The topics; {key} is one level, and each value of it has a window of its own.",
    "url": "The broker that the sensors publish to. Left out, it is that of [upstream].",
    "files": "Recorded files that are played as if a sensor sent them.",
}


def _text(value: str) -> str:
    """A TOML basic string; JSON's escapes are among TOML's."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: object) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return str(value)
