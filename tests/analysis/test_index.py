from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dinov2rt.analysis import vectors as feature_vectors
from dinov2rt.analysis.index import FeatureIndex, index_features
from dinov2rt.analysis.vectors import Token, open_collection, unit_vectors
from dinov2rt.errors import InputError

COUNT, DIM = 50, 384
KEYS = [f"{index}.jpg" for index in range(COUNT)]

Write = Callable[..., Path]


def random_tokens(count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, DIM)).astype(np.float32)


def index_of(folder: Path, token: Token = Token.CLS) -> FeatureIndex:
    return index_features(open_collection(folder), token)


@pytest.mark.parametrize("token", Token)
def test_neighbours_are_those_of_largest_cosine(
    write_features: Write, monkeypatch: pytest.MonkeyPatch, token: Token
) -> None:
    monkeypatch.setattr(feature_vectors, "_ROWS_AT_A_TIME", 16)  # several batches
    tokens = random_tokens() * np.geomspace(1e-3, 1e3, COUNT, dtype=np.float32)[:, None]
    index = index_of(write_features("f", KEYS, tokens), token)
    vectors = (tokens if token is Token.CLS else tokens[::-1]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors[7]
    found = index.search(index.vector(7), 10, without=7)
    expected = [at for at in np.argsort(-cosines) if at != 7][:10]
    assert [near.key for near in found] == [KEYS[at] for at in expected]
    assert [near.rank for near in found] == list(range(1, 11))
    np.testing.assert_allclose([near.score for near in found], cosines[expected], atol=1e-6)


def test_a_query_of_its_own_finds_itself_unless_it_is_left_out(write_features: Write) -> None:
    index = index_of(write_features("f", KEYS, random_tokens()))
    position = index.find("3.jpg")
    assert position == 3
    (first,) = index.search(index.vector(3), 1)
    assert (first.key, round(first.score, 5)) == ("3.jpg", 1.0)
    assert "3.jpg" not in [near.key for near in index.search(index.vector(3), COUNT, without=3)]


def test_there_are_never_more_neighbours_than_images(write_features: Write) -> None:
    index = index_of(write_features("f", KEYS[:3], random_tokens(3)))
    assert len(index) == 3
    assert len(index.search(index.vector(0), 100)) == 3
    assert len(index.search(index.vector(0), 100, without=0)) == 2
    with pytest.raises(InputError, match="0 neighbours; allowed is a whole number from 1"):
        index.search(index.vector(0), 0)


def test_half_precision_features_are_searched_like_others(write_features: Write) -> None:
    tokens = random_tokens()
    halves = index_of(write_features("h", KEYS, tokens, dtype="float16"))
    singles = index_of(write_features("s", KEYS, tokens))
    near = [[near.key for near in one.search(one.vector(0), 5)] for one in (halves, singles)]
    assert near[0] == near[1]


def test_a_key_that_is_not_there_is_not_found(write_features: Write) -> None:
    assert index_of(write_features("f", KEYS, random_tokens())).find("x.jpg") is None


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_vector_without_direction_is_refused_by_name(write_features: Write, value: float) -> None:
    tokens = random_tokens()
    tokens[4] = value
    folder = write_features("f", KEYS, tokens)
    with pytest.raises(InputError, match=r"features of 4\.jpg are zero or not finite"):
        index_of(folder)


def test_features_of_no_image_are_refused(write_features: Write) -> None:
    with pytest.raises(InputError, match=r"f holds no image; make features of some"):
        open_collection(write_features("f", [], random_tokens(0)))


def test_an_unknown_token_is_refused() -> None:
    with pytest.raises(InputError, match='unknown token \'mean\'; allowed are "cls", "patch-mean"'):
        Token.parse("mean")


def test_an_infinite_vector_is_refused() -> None:
    with pytest.raises(InputError, match="features of b are zero or not finite"):
        unit_vectors(np.array([[1.0], [np.inf]]), ["a", "b"])
