"""A bounded least-recently-used cache of prepared shapes, such as captured CUDA graphs."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class GraphCache(Generic[Value]):
    """At most `capacity` prepared values; the least recently used is evicted.

    A key is prepared when it is requested for the second time. For a shape that is seen only once,
    as in a folder of images of many sizes, preparing costs more than it saves. `synchronize` is
    called before a value is evicted, because the GPU may still be using it.
    """

    def __init__(self, capacity: int, synchronize: Callable[[], None]) -> None:
        self._capacity = capacity
        self._synchronize = synchronize
        self._prepared: OrderedDict[Hashable, Value] = OrderedDict()
        self._seen_once: OrderedDict[Hashable, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prepared)

    def get(self, key: Hashable, prepare: Callable[[], Value]) -> Value | None:
        """The value for `key`; None on the first request, prepared on the second."""
        if key in self._prepared:
            self._prepared.move_to_end(key)
            return self._prepared[key]
        if key not in self._seen_once:
            self._seen_once[key] = None
            _shrink(self._seen_once, self._capacity)
            return None
        del self._seen_once[key]
        # Evict first: this frees memory before the new value allocates its own.
        if len(self._prepared) >= self._capacity:
            self._synchronize()
            _shrink(self._prepared, self._capacity - 1)
        value = self._prepared[key] = prepare()
        return value

    def clear(self) -> None:
        """Drop all values; keys that were seen stay known."""
        self._synchronize()
        self._seen_once.update(dict.fromkeys(self._prepared))
        self._prepared.clear()
        _shrink(self._seen_once, self._capacity)


def _shrink(entries: "OrderedDict[Hashable, Value]", size: int) -> None:
    while len(entries) > size:
        entries.popitem(last=False)
