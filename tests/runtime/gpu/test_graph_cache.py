from collections.abc import Callable

import pytest

from dinov2rt.runtime.gpu.graph_cache import GraphCache


class Prepared:
    """Stands in for an execution context with its CUDA graph."""


class Counter:
    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> Prepared:
        self.made += 1
        return Prepared()


@pytest.fixture
def prepare() -> Counter:
    return Counter()


def idle() -> None:
    """Nothing to wait for: no work is running."""


def use(cache: GraphCache[Prepared], prepare: Callable[[], Prepared], *keys: object) -> None:
    for key in keys:
        cache.get(key, prepare)


def test_a_shape_is_prepared_when_it_comes_for_the_second_time(prepare: Counter) -> None:
    cache: GraphCache[Prepared] = GraphCache(2, idle)
    assert cache.get("a", prepare) is None
    first = cache.get("a", prepare)
    assert first is not None
    assert cache.get("a", prepare) is first
    assert prepare.made == 1


def test_shapes_that_come_once_are_not_prepared_and_do_not_accumulate(prepare: Counter) -> None:
    cache: GraphCache[Prepared] = GraphCache(2, idle)
    use(cache, prepare, *range(10_000))
    assert (prepare.made, len(cache)) == (0, 0)
    assert len(cache._seen_once) == 2


def test_the_least_recently_used_is_evicted_at_capacity(prepare: Counter) -> None:
    cache: GraphCache[Prepared] = GraphCache(2, idle)
    use(cache, prepare, "a", "a", "b", "b", "a", "c", "c")
    assert len(cache) == 2
    made = prepare.made
    assert cache.get("a", prepare) is not None  # used after b
    assert cache.get("c", prepare) is not None
    assert prepare.made == made
    assert cache.get("b", prepare) is None
    assert cache.get("b", prepare) is not None
    assert prepare.made == made + 1


def test_an_entry_is_evicted_before_the_next_is_prepared(prepare: Counter) -> None:
    cache: GraphCache[Prepared] = GraphCache(1, idle)
    use(cache, prepare, "a", "a", "b")
    held = []

    def count() -> Prepared:
        held.append(len(cache))
        return Prepared()

    cache.get("b", count)
    assert held == [0]


def test_a_cleared_cache_prepares_known_shapes_at_once(prepare: Counter) -> None:
    cache: GraphCache[Prepared] = GraphCache(2, idle)
    use(cache, prepare, "a", "a")
    cache.clear()
    assert len(cache) == 0
    assert cache.get("a", prepare) is not None
    assert prepare.made == 2


def test_a_failed_preparation_leaves_the_others_as_they_are(prepare: Counter) -> None:
    cache: GraphCache[Prepared] = GraphCache(2, idle)
    use(cache, prepare, "a", "a", "b")

    def fail() -> Prepared:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cache.get("b", fail)
    assert len(cache) == 1
    assert cache.get("b", prepare) is None, "it counts as not seen"


def test_work_is_synchronized_before_an_eviction(prepare: Counter) -> None:
    held = []
    cache: GraphCache[Prepared] = GraphCache(1, lambda: held.append(len(cache)))
    use(cache, prepare, "a", "a")
    assert held == []
    use(cache, prepare, "b", "b")
    assert held == [1], "the old one was still there"
    cache.clear()
    assert held == [1, 1]
