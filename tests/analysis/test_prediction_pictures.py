"""Answers as pictures: their sizes, their colours, and what is where."""

import numpy as np

from dinov2rt.analysis.prediction_pictures import (
    colour_map,
    draw_attention,
    draw_overview,
    draw_prediction,
)
from dinov2rt.bundle.tasks.classes import class_table
from dinov2rt.foreign import shown
from dinov2rt.runtime.predictions import Classification, Depth, Segmentation

HEIGHT, WIDTH = 280, 210
PHOTO = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SLOPE = np.linspace(1, 3, HEIGHT, dtype=np.float32)[:, None].repeat(WIDTH, axis=1)
DEPTH = Depth(SLOPE[None], (0.001, 10.0))


def test_the_colour_map_grows_brighter() -> None:
    colours = colour_map(np.linspace(-1, 2, 100))
    brightness = colours.astype(float) @ [0.2126, 0.7152, 0.0722]
    assert np.all(np.diff(brightness) >= -0.5)
    assert tuple(colours[0]) == (68, 1, 84)
    assert tuple(colours[-1]) == (253, 231, 37)


def test_depth_stands_beside_the_photo_with_its_scale() -> None:
    picture = draw_prediction(PHOTO, DEPTH)
    assert picture.shape[0] == HEIGHT
    np.testing.assert_array_equal(picture[:, :WIDTH], PHOTO)
    drawn = picture[:, WIDTH + 8 : 2 * WIDTH + 8]
    np.testing.assert_array_equal(drawn, colour_map((SLOPE - 1) / 2))


def test_a_flat_depth_can_be_drawn() -> None:
    flat = Depth(np.full((1, HEIGHT, WIDTH), 2, np.float32), (0.001, 10.0))
    drawn = draw_prediction(PHOTO, flat)[:, WIDTH + 8 : 2 * WIDTH + 8]
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 1


def test_segments_lie_over_the_photo_and_the_legend_names_the_largest_first() -> None:
    table = class_table("voc2012")
    assert table.palette is not None
    classes = np.zeros((1, HEIGHT, WIDTH), np.uint8)
    classes[:, :100] = 15
    picture = draw_prediction(PHOTO, Segmentation(classes, table.names, table.palette))
    mixed = 0.45 * PHOTO + 0.55 * table.palette[classes[0]]
    assert np.abs(picture[:HEIGHT, :WIDTH] - mixed).max() < 0.51  # rounded
    boxes = picture[8 + 6 :: 18, WIDTH + 8 + 8 + 6]  # the middles of the legend's boxes
    assert tuple(boxes[0]) == tuple(table.palette[0])
    assert tuple(boxes[1]) == tuple(table.palette[15])


def test_bars_of_classes_grow_with_their_probability() -> None:
    logits = np.zeros((1, 1000), np.float32)
    logits[0, :2] = 12, 11
    answer = Classification(logits, class_table("imagenet1k").names)
    panel = draw_prediction(PHOTO, answer)[:, WIDTH + 8 :]
    bars = [
        int(np.all(panel[8 + 36 * line + 20] == (69, 117, 180), axis=1).sum()) for line in (0, 1)
    ]
    assert bars[0] > 2 * bars[1] > 0


def test_every_head_has_its_own_attention_map() -> None:
    attention = np.zeros((8, 20, 15), np.float32)
    attention[3, 10, 7] = 0.5
    picture = draw_attention(PHOTO, attention)
    assert picture.shape == (2 * HEIGHT + 8, 7 * WIDTH + 6 * 8, 3)
    np.testing.assert_array_equal(picture[:HEIGHT, :WIDTH], PHOTO)
    tile = picture[:HEIGHT, 4 * (WIDTH + 8) :][:, :WIDTH]
    row, column = np.unravel_index(tile[..., 1].argmax(), tile.shape[:2])
    assert (row // 14, column // 14) == (10, 7)


def test_the_overview_shows_features_attention_photo_and_depth() -> None:
    colours = np.random.default_rng(1).random((20, 15, 3))
    attention = np.full((6, 20, 15), 0.01, np.float32)
    whole = draw_overview(PHOTO, colours, attention, DEPTH, "of synthetic weights")
    caption, picture = whole[:-HEIGHT], whole[-HEIGHT:]
    assert (caption < 128).sum() > 0  # dark letters
    assert len(caption) == 26
    assert tuple(picture[0, 0]) == tuple(np.rint(255 * colours[0, 0]).astype(int))
    np.testing.assert_array_equal(picture[:, 2 * (WIDTH + 8) :][:, :WIDTH], PHOTO)


def test_one_patch_with_most_attention_does_not_darken_the_others() -> None:
    attention = np.full((6, 20, 15), 0.01, np.float32)
    attention[:, 3, 4] = 1
    colours = np.zeros((20, 15, 3))
    overview = draw_overview(PHOTO, colours, attention, DEPTH, "of synthetic weights")
    attended = overview[-HEIGHT:, WIDTH + 8 :][:, :WIDTH]
    assert attended[..., 1].min() > 200  # the last colour of the map, yellow


def test_names_of_classes_are_written_with_escapes_and_cut() -> None:
    logits, name = np.zeros((1, 2), np.float32), "\x1b[2J\u202e" + "x" * 10_000
    drawn = draw_prediction(PHOTO, Classification(logits, (name, "dog")))
    assert np.array_equal(
        drawn, draw_prediction(PHOTO, Classification(logits, (shown(name, 60), "dog")))
    )
    palette, classes = np.zeros((2, 3), np.uint8), np.zeros((1, HEIGHT, WIDTH), np.uint8)
    legend = draw_prediction(PHOTO, Segmentation(classes, (name, "dog"), palette))
    assert np.array_equal(
        legend, draw_prediction(PHOTO, Segmentation(classes, (shown(name, 60), "dog"), palette))
    )
