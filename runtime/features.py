"""The features that a model returns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from dinov2rt.bundle.geometry import Grid
from dinov2rt.bundle.signature import ATTENTION, X_PRENORM, FloatArray, layer_output_names
from dinov2rt.errors import InputError
from dinov2rt.foreign import quoted
from dinov2rt.runtime.inputs import ImageGroup


@dataclass(frozen=True, slots=True, eq=False)
class LayerFeatures:
    """Tokens of one intermediate block, after the final norm, or without it if exported so.

    Shapes: `cls_token` [B, D], `patch_tokens` [B, h, w, D].
    """

    cls_token: FloatArray
    patch_tokens: FloatArray


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Features:
    """Tokens after the final norm, for B images of one size.

    `outputs` maps the names of the requested outputs to arrays with B rows. The properties return
    them with the shapes below, or raise an error if an output was not requested.

    Example:
        >>> features = model(["photos/a.jpg", "photos/b.jpg"])
        >>> features.cls_token.shape, features.register_tokens.shape
        ((2, 384), (2, 4, 384))
        >>> features.patch_tokens.shape, features.grid  # 90 × 120 pixels, patches of 14
        ((2, 6, 8, 384), Grid(rows=6, cols=8))
        >>> features[0].cls_token.shape
        (1, 384)
    """

    outputs: Mapping[str, FloatArray]
    grid: Grid
    num_registers: int

    @property
    def cls_token(self) -> FloatArray:
        """[B, D]."""
        return self._output("cls_token")

    @property
    def register_tokens(self) -> FloatArray:
        """[B, R, D]; R is 0 for variants without registers."""
        if self.num_registers:
            return self._output("register_tokens")
        tokens = next(iter(self.outputs.values()))
        return tokens.reshape(len(tokens), -1, tokens.shape[-1])[:, :0]

    @property
    def patch_tokens(self) -> FloatArray:
        """[B, h, w, D]."""
        return self._on_grid("patch_tokens")

    @property
    def x_prenorm(self) -> FloatArray:
        """[B, 1 + R + h·w, D], the last block's tokens before the final norm.

        In bundles exported with `--x-prenorm`.
        """
        return self._output(X_PRENORM)

    @property
    def attention(self) -> FloatArray:
        """[B, heads, h, w], how much the CLS token attends to each patch in the last block.

        In bundles exported with `--attention`. Attention to the CLS token itself and to registers
        is left out, so that a map sums to less than 1.
        """
        value = self._output(ATTENTION)
        return value.reshape(*value.shape[:2], self.grid.rows, self.grid.cols)

    def layer(self, index: int) -> LayerFeatures:
        """Tokens of the intermediate block `index`, in bundles exported with `--layers`.

        Raises:
            InputError: the bundle was exported without it, or the call did not ask for it.
        """
        cls_token, patch_tokens = layer_output_names(index)
        if not {cls_token, patch_tokens} <= set(self.outputs):
            raise InputError(
                f"layer {quoted(index)} is not among the outputs here: {', '.join(self.outputs)}; "
                f"export the bundle with --layers {quoted(index)}, and leave outputs= out of the "
                f'call, or name "{cls_token}" and "{patch_tokens}" in it'
            )
        return LayerFeatures(self._output(cls_token), self._on_grid(patch_tokens))

    def __repr__(self) -> str:
        """One line: names, shapes and dtypes."""
        arrays = ", ".join(
            f"{name} {list(self._shape(name, value.shape))} {value.dtype}"
            for name, value in self.outputs.items()
        )
        return f"Features({arrays})"

    def _shape(self, name: str, shape: Sequence[int]) -> Sequence[int]:
        """Patch tokens as the properties give them, on the grid."""
        if not name.endswith("patch_tokens"):
            return shape
        return (shape[0], self.grid.rows, self.grid.cols, *shape[2:])

    def __len__(self) -> int:
        return len(next(iter(self.outputs.values())))

    def __getitem__(self, index: int) -> Self:
        """The features of one image, with B = 1; views, not copies."""
        position = range(len(self))[index]
        rows = slice(position, position + 1)
        outputs = {name: value[rows] for name, value in self.outputs.items()}
        return replace(self, outputs=outputs)

    def _output(self, name: str) -> FloatArray:
        if name not in self.outputs:
            raise InputError(f"{name} is not among the outputs here: {', '.join(self.outputs)}")
        return self.outputs[name]

    def _on_grid(self, name: str) -> FloatArray:
        value = self._output(name)
        return value.reshape(len(value), self.grid.rows, self.grid.cols, -1)


def gathered(groups: Sequence[tuple[ImageGroup, Features]]) -> Features | list[Features]:
    """Features of all images in the caller's order: stacked where they have one grid."""
    if len(groups) == 1:
        return groups[0][1]
    single = scatter(groups)
    first = single[0]
    if any(each.grid != first.grid for each in single) or not _on_host(first):
        return single
    outputs = {
        name: np.concatenate([each.outputs[name] for each in single]) for name in first.outputs
    }
    return replace(first, outputs=outputs)


def _on_host(features: Features) -> bool:
    return all(isinstance(value, np.ndarray) for value in features.outputs.values())


def scatter(groups: Iterable[tuple[ImageGroup, Features]]) -> list[Features]:
    """The features of each image, in the caller's order."""
    placed = {
        position: features[index]
        for group, features in groups
        for index, position in enumerate(group.positions)
    }
    return [placed[position] for position in sorted(placed)]
