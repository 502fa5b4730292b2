from collections.abc import Callable

import pytest

from dinov2rt.engines.builder_log import parse_layers, parse_scratch_bytes, parse_weight_bytes
from dinov2rt.errors import BuildError

LOG = [
    "Detected 1 inputs and 3 output network tensors.",
    "Max Scratch Memory: 64536576 bytes",
    "Total Activation Memory: 64537600 bytes",
    "Detected 1 inputs and 3 output network tensors.",
    "Total Activation Memory: 337675264",  # before 10.7 without the unit
    "Total Weights Memory: 45535488 bytes",
    "Layers:\nName: _gemm_mha_v2_myl1_14, LayerType: kgen",
]


def test_figures_are_read_in_the_order_of_the_profiles() -> None:
    assert parse_scratch_bytes(LOG, 2) == (64537600, 337675264)
    assert parse_weight_bytes(LOG) == 45535488
    assert parse_layers(LOG).startswith("Layers:\nName: _gemm_mha_v2")


@pytest.mark.parametrize(
    ("parse", "found"),
    [
        (lambda log: parse_scratch_bytes(log, 3), '"Total Activation Memory" 2 times'),
        (lambda log: parse_weight_bytes(log[:-2]), '"Total Weights Memory" 0 times'),
        (lambda log: parse_weight_bytes(log + log), '"Total Weights Memory" 2 times'),
        (lambda log: parse_layers(log[:-1]), "0 lists of layers"),
    ],
)
def test_a_log_that_cannot_be_parsed_is_an_error_and_not_zero(
    parse: Callable[[list[str]], object], found: str
) -> None:
    with pytest.raises(BuildError, match="has another log format") as caught:
        parse(LOG)
    assert found in str(caught.value)
