"""Finds the external files that an ONNX graph refers to, without the onnx package.

It reads the wire format of protocol buffers, along the fields of `onnx.proto` that lead to a
tensor. Before a library reads a graph, all of its files have to be in the manifest; otherwise the
library would read a file whose hash was not checked.
"""

from collections.abc import Iterator

_TENSOR = "tensor"
# For each message type, its fields that hold messages, with the field numbers of onnx.proto.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node"},
    "graph": {1: "node", 5: _TENSOR, 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: _TENSOR, 6: "graph", 10: _TENSOR, 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: _TENSOR, 2: _TENSOR},
}
_EXTERNAL_DATA = 13
_MOST_NESTED = 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def external_files(model: bytes) -> set[str]:
    """Locations of all external data of the serialized `model`, as written in the graph.

    Raises:
        ValueError: `model` is not a protocol buffer, or is nested too deeply.
    """
    return set(_locations(memoryview(model), "model", 0))


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _MOST_NESTED:
        raise ValueError("graphs are nested too deeply")
    if kind == _TENSOR:
        yield from _of_tensor(message)
        return
    for number, value in _fields(message):
        inner = _FIELDS[kind].get(number)
        if inner is not None:
            yield from _locations(value, inner, depth + 1)


def _of_tensor(tensor: memoryview) -> Iterator[str]:
    for number, entry in _fields(tensor):
        if number == _EXTERNAL_DATA:
            pair = {key: bytes(value) for key, value in _fields(entry)}
            if pair.get(1) == b"location":
                yield pair.get(2, b"").decode("utf-8", errors="surrogateescape")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field that holds bytes, a string or a message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _BYTES:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise ValueError("a field ends after its message")
            yield number, message[at : at + length]
            at += length
        elif wire_type == _VARINT:
            _, at = _varint(message, at)
        elif wire_type in (_FIXED64, _FIXED32):
            at += 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire_type} does not exist")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("a number has no end")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
