"""A bounded cache of what was prepared for a shape."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class GraphCache(Generic[Value]):
    """At most `capacity` prepared values, the one that was not used for longest making way.

    A key is prepared when it comes for the second time: preparing costs more than it saves for a
    shape that is seen once, as most are when a folder holds images of many sizes. `settle` is
    called before a value makes way: it may still be at work.
    """

    def __init__(self, capacity: int, settle: Callable[[], None]) -> None:
        self._capacity = capacity
        self._settle = settle
        self._prepared: OrderedDict[Hashable, Value] = OrderedDict()
        self._seen_once: OrderedDict[Hashable, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prepared)

    def get(self, key: Hashable, prepare: Callable[[], Value]) -> Value | None:
        """The value of `key`, prepared now if this is its second time; None the first time."""
        if key in self._prepared:
            self._prepared.move_to_end(key)
            return self._prepared[key]
        if key not in self._seen_once:
            self._seen_once[key] = None
            _shrink(self._seen_once, self._capacity)
            return None
        del self._seen_once[key]
        # Room first: what is evicted frees its memory before more is taken.
        if len(self._prepared) >= self._capacity:
            self._settle()
            _shrink(self._prepared, self._capacity - 1)
        value = self._prepared[key] = prepare()
        return value

    def clear(self) -> None:
        """Forget all values, but not which keys were seen."""
        self._settle()
        self._seen_once.update(dict.fromkeys(self._prepared))
        self._prepared.clear()
        _shrink(self._seen_once, self._capacity)


def _shrink(entries: "OrderedDict[Hashable, Value]", size: int) -> None:
    while len(entries) > size:
        entries.popitem(last=False)
