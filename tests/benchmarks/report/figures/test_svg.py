import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from dinov2rt.benchmarks.report.figures.svg import PALETTE, draw

# G. M. Machado et al., A Physiologically-based Model for Simulation of Color Vision Deficiency,
# 2009, severity 1; on linear sRGB.
VISIONS = {
    "trichromat": np.eye(3),
    "protanope": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranope": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ]
    ),
    "tritanope": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.3039],
        ]
    ),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = XYZ.sum(axis=1)


def cielab(color: str, vision: str) -> NDArray[np.float64]:
    srgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    x, y, z = XYZ @ np.clip(VISIONS[vision] @ linear, 0, 1) / WHITE
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("page", ["light", "dark"])
def test_colors_are_told_apart_with_any_color_vision(page: str, vision: str) -> None:
    seen = [cielab(pair[page == "dark"], vision) for pair in PALETTE]
    distances = [np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)]
    assert min(distances) > 20  # 2 is just noticeable, side by side


def test_a_drawing_says_what_it_is_and_has_no_size_of_its_own() -> None:
    svg = draw(lambda axes: axes.set_title("<b>"), "plot-1", title="a < b", description="c & d")
    assert svg.startswith('<svg viewBox="0 0 324 237.6" role="img" id="plot-1"')
    assert '<title id="plot-1-title">a &lt; b</title>' in svg
    assert '<desc id="plot-1-desc">c &amp; d</desc>' in svg
    assert "<b>" not in svg
    assert "width=" not in svg.partition(">")[0]
    assert "#123456" not in svg
    assert svg == draw(
        lambda axes: axes.set_title("<b>"), "plot-1", title="a < b", description="c & d"
    )
