import dataclasses

import pytest

from dinov2rt.bundle.geometry import ImageSize
from dinov2rt.bundle.normalization import Normalization
from dinov2rt.bundle.variants import find_variant, variants
from dinov2rt.errors import InputError

# embed_dim, depth, num_heads, ffn, hidden_dim, as the official hub entries build them
FACTS = {
    "dinov2_vits14": (384, 12, 6, "mlp", 1536),
    "dinov2_vitb14": (768, 12, 12, "mlp", 3072),
    "dinov2_vitl14": (1024, 24, 16, "mlp", 4096),
    "dinov2_vitg14": (1536, 40, 24, "swiglu", 4096),
}


def test_there_are_eight_small_to_giant_and_plain_first() -> None:
    expected = [f"{name}{suffix}" for name in FACTS for suffix in ("", "_reg")]
    assert [variant.name for variant in variants()] == expected


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize(("suffix", "num_registers"), [("", 0), ("_reg", 4)])
def test_facts(name: str, suffix: str, num_registers: int) -> None:
    variant = find_variant(name + suffix)
    facts = (
        variant.embed_dim,
        variant.depth,
        variant.num_heads,
        variant.ffn,
        variant.hidden_dim,
    )
    assert facts == FACTS[name]
    assert variant.num_registers == num_registers
    assert variant.num_prefix_tokens == 1 + num_registers
    assert variant.head_dim == 64


def test_patches_of_14_and_a_trained_grid_of_518_pixels() -> None:
    assert {variant.patch_size for variant in variants()} == {14}
    assert {variant.native_size for variant in variants()} == {ImageSize(518, 518)}


def test_a_fingerprint_tells_the_statistics_of_the_input_apart() -> None:
    variant = find_variant("dinov2_vits14")
    other = Normalization(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    fingerprints = {
        each.fingerprint
        for each in (
            *variants(),
            dataclasses.replace(variant, normalization=other),
            dataclasses.replace(variant, offset=0.0),
        )
    }
    assert len(fingerprints) == len(variants()) + 2


def test_a_variant_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        find_variant("dinov2_vits14").depth = 11  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("dinov2_vits14_regs", "dinov2_vits14_reg"),
        ("vitl14", "dinov2_vitl14"),
        ("dinov2-vitg14-reg", "dinov2_vitg14_reg"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(InputError) as error:
        find_variant(name)
    names = ", ".join(variant.name for variant in variants())
    assert str(error.value) == f"unknown variant {name!r}; nearest is {nearest!r}, all are: {names}"


@pytest.mark.parametrize("name", ["", None])
def test_no_name_at_all_is_one_line_too(name: str) -> None:
    with pytest.raises(InputError, match=r"^unknown variant (''|None); nearest is 'dinov2_"):
        find_variant(name)
