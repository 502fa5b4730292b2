"""Rewrites the fp16 graph with fused operators, for ONNX Runtime's CUDA provider.

There, each transformer block of the portable graph runs as about 30 kernels. The fused form uses
ONNX Runtime's own operators (domain com.microsoft) and needs 13 kernels for a block with an MLP:

    qkv product · bias and transpose of q, k, v · attention · output product
    · cast, SkipLayerNormalization, cast · up product · BiasGelu · down product
    · cast, SkipLayerNormalization, cast

Precisions are as in the portable graph: matrix products and attention in half precision, the
residual stream and LayerNorm in float32. The float32 stream needs the casts, because no operator of
ONNX Runtime adds a float16 branch to it. docs/adr/0012 has the alternatives.

Only arithmetic on shapes runs on the CPU provider, and nothing is copied between the providers, so
that a CUDA graph can be captured for every shape of one session; a test checks this. Therefore
values that depend only on the image's size are inputs, which the runtime computes once per shape:
the padding, and the matrices that resample the position table.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.position import COLUMNS_INPUT, ROWS_INPUT, table_taps
from dinov2rt.bundle.signature import ATTENTION
from dinov2rt.export.surgery import Writer, module_of

_HALF, _FLOAT, _INT64 = ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.INT64
_CONTRIB = "com.microsoft"
_EPSILON = 1e-6
_PADDING = "padding"
_BEHIND_BLOCKS = ("layer_", "x_prenorm", "final", f"{ATTENTION}_map", "heads.")


def fuse(model: ir.Model, architecture: Architecture) -> None:
    """Rewrite `model`, the portable fp16 graph of `architecture`, in place.

    Its images keep their name, type and layout. Three inputs are added, or replaced:
    `padding` int64 [8], what ONNX calls `pads` for the images in their own layout, negative where
    pixels are dropped, so that the padded sides are multiples of the patch; `position_rows` and
    `position_columns`, see `bundle/position.py`. The outputs stay as they are.
    """
    graph = model.graph
    writer = Writer(graph, before=_first_head(graph))
    tokens = _embed(writer, architecture)
    _Blocks(writer, architecture, tokens).write()
    RemoveUnusedNodesPass()(model)
    _drop_unused_initializers(graph)
    model.opset_imports[_CONTRIB] = 1


def _first_head(graph: ir.Graph) -> ir.Node:
    """The first node after the blocks, in the order of the graph."""
    return next(node for node in graph if (node.name or "").startswith(_BEHIND_BLOCKS))


def _embed(write: Writer, architecture: Architecture) -> ir.Value:
    """Images to the tokens that enter the first block, [B, 1 + R + h·w, D] float32."""
    images = write.graph.inputs[0]
    is_pixels = images.dtype == ir.DataType.UINT8
    padding = _declare_inputs(write, images, architecture)
    if is_pixels:
        scale, shift = (
            write.array(name).reshape(1, 1, 1, 3) for name in ("pixel_scale", "pixel_shift")
        )
        images = write("Cast", images, name="pixels/float", dtype=_FLOAT)
        images = write("Mul", images, scale, name="pixels/scaled")
        images = write("Add", images, shift, name="pixels/normalized")
    padded = write("Pad", images, padding, name="embedding/padded")
    patches = _patches(write, padded, architecture.patch_size, is_pixels)
    weight = write.array("patch_weight")  # [D, 3, P, P]
    order = (2, 3, 1, 0) if is_pixels else (1, 2, 3, 0)
    weight = weight.transpose(order).reshape(-1, architecture.embed_dim)
    product = write("MatMul", patches, weight, name="embedding.patch/product", dtype=_HALF)
    product = write("Cast", product, name="embedding.patch/float", dtype=_FLOAT)
    patch_tokens = write(
        "Add", product, _positions(write, architecture), name="embedding/patch_tokens"
    )
    batch = write("Shape", padded, name="embedding/batch", dtype=_INT64, start=0, end=1)
    one = np.array([1])
    shape = write("Concat", batch, one, one, name="embedding/prefix_shape", dtype=_INT64, axis=0)
    prefix = write("Expand", write.initializer("prefix"), shape, name="embedding/prefix")
    return write("Concat", prefix, patch_tokens, name="embedding/tokens", axis=1)


def _declare_inputs(write: Writer, images: ir.Value, architecture: Architecture) -> ir.Value:
    """Take out the inputs that the portable graph has besides its images, and declare our own.

    Returns:
        The padding. It has no default, since ONNX Runtime cannot bind an input that has one.
    """
    graph = write.graph
    graph.initializers.pop(_PADDING, None)
    padding = ir.val(_PADDING, dtype=_INT64, shape=[8])
    taps = table_taps(architecture)
    sides = ((ROWS_INPUT, "rows", taps.rows), (COLUMNS_INPUT, "columns", taps.cols))
    matrices = [
        ir.val(name, dtype=_FLOAT, shape=ir.Shape([side, count])) for name, side, count in sides
    ]
    graph.inputs[:] = [images, padding, *matrices]
    return padding


def _patches(write: Writer, padded: ir.Value, patch_size: int, is_pixels: bool) -> ir.Value:
    """Padded images to the pixels of each patch of P × P, [B, h·w, 3 · P · P] float16.

    A convolution whose stride is its kernel is a product of these; ONNX Runtime's own convolution
    kernel for such a patch takes much longer.
    """
    height, width = (1, 2) if is_pixels else (2, 3)
    batch = write("Shape", padded, name="patches/batch", dtype=_INT64, start=0, end=1)
    sides = []
    for name, axis in (("rows", height), ("columns", width)):
        pixels = write(
            "Shape", padded, name=f"patches/{name}_pixels", dtype=_INT64, start=axis, end=axis + 1
        )
        side = np.array([patch_size])
        sides.append(write("Div", pixels, side, name=f"patches/{name}", dtype=_INT64))
    rows, columns = sides
    side, channels = np.array([patch_size]), np.array([3])
    if is_pixels:  # [B, h, P, w, P · 3]
        cells = [batch, rows, side, columns, side * channels]
        order = [0, 1, 3, 2, 4]
    else:  # [B, 3, h, P, w, P]
        cells = [batch, channels, rows, side, columns, side]
        order = [0, 2, 4, 1, 3, 5]
    shape = write("Concat", *cells, name="patches/cells", dtype=_INT64, axis=0)
    split = write("Reshape", padded, shape, name="patches/split")
    ordered = write("Transpose", split, name="patches/ordered", perm=order)
    half = write("Cast", ordered, name="patches/half", dtype=_HALF)
    length = np.array([-1]), np.array([3 * patch_size**2])
    flat = write("Concat", batch, *length, name="patches/flat", dtype=_INT64, axis=0)
    return write("Reshape", half, flat, name="patches", dtype=_HALF)


def _positions(write: Writer, architecture: Architecture) -> ir.Value:
    """The position of every patch, plus the bias of the patch embedding: [1, h·w, D] float32."""
    rows, columns = write.graph.inputs[2:4]
    table = write.initializer("position.table")  # [row taps, column taps · D]
    taps, dim = table_taps(architecture), architecture.embed_dim
    down = write("MatMul", rows, table, name="position/rows")
    down = write("Reshape", down, np.array([-1, taps.cols, dim]), name="position/of_rows")
    across = write("MatMul", columns, down, name="position/columns")
    flat = write("Reshape", across, np.array([1, -1, dim]), name="position/flat")
    bias = write.array("patch_bias").astype(np.float32)
    return write("Add", flat, bias, name="position/with_bias")


class _Blocks:
    """Writes all transformer blocks, and the norms after them.

    The residual addition of one branch and the LayerNorm of the next are one operator. Therefore
    each branch is added when the norm after it is written.
    """

    def __init__(self, write: Writer, architecture: Architecture, tokens: ir.Value) -> None:
        self._write, self._architecture = write, architecture
        self._stream = tokens
        norms = {
            module_of(node): node for node in write.graph if node.op_type == "LayerNormalization"
        }
        self._final = norms["final.norm"]
        firsts = [norms[f"blocks.{index}.norm1"] for index in range(architecture.depth)]
        self._after = [*firsts[1:], self._final]
        """For each block, the norm in the portable graph that reads its output."""

    def write(self) -> None:
        """Write every block, in order, and connect the intermediate and final norms."""
        write, depth = self._write, self._architecture.depth
        weight, bias = (write.initializer(f"blocks.0.norm1.{kind}") for kind in ("weight", "bias"))
        normed = write(
            "LayerNormalization",
            self._stream,
            weight,
            bias,
            name="blocks.0.norm1",
            axis=-1,
            epsilon=_EPSILON,
        )
        for index in range(depth):
            name = f"blocks.{index}"
            if index == depth - 1:
                self._feed_attention_map(normed, name)
            following = f"blocks.{index + 1}.norm1" if index + 1 < depth else "norm"
            branch = self._attention(normed, name)
            normed = self._add_and_norm(branch, f"{name}.proj", f"{name}.ls1", f"{name}.norm2")
            branch = self._feed_forward(normed, name)
            normed = self._add_and_norm(branch, f"{name}.down", f"{name}.ls2", following)
            self._feed_head(index)
        ir.convenience.replace_all_uses_with(self._final.outputs[0], normed)

    def _attention(self, normed: ir.Value, name: str) -> ir.Value:
        write = self._write
        half = write("Cast", normed, name=f"{name}.qkv/half", dtype=_HALF)
        mixed = write(
            "Attention",
            half,
            write.initializer(f"{name}.qkv.weight"),
            write.initializer(f"{name}.qkv.bias"),
            name=f"{name}/attention",
            dtype=_HALF,
            domain=_CONTRIB,
            num_heads=self._architecture.num_heads,
            scale=1.0,  # the query's weights hold it
        )
        return self._product(mixed, f"{name}.proj", f"{name}.ls1")

    def _feed_attention_map(self, normed: ir.Value, name: str) -> None:
        """Compute queries and keys for the attention map, which the fused operator does not return.

        This repeats a sixth of a block's products.
        """
        portable = next(node for node in self._write.graph if node.op_type == "Attention"
                        and not node.domain and module_of(node) == name)  # fmt: skip
        for kind, part in zip(("query", "key"), portable.inputs[:2], strict=True):
            every = list(part.uses()) if part is not None else []
            uses = [use for use in every if not module_of(use.node).startswith("blocks.")]
            if uses:
                own = self._heads_of(normed, name, kind)
                for use in uses:
                    use.node.replace_input_with(use.idx, own)

    def _heads_of(self, normed: ir.Value, name: str, kind: str) -> ir.Value:
        """Queries or keys of every head, [B, heads, N, head_dim] float16."""
        write, dim = self._write, self._architecture.embed_dim
        columns = slice(0, dim) if kind == "query" else slice(dim, 2 * dim)
        place = f"{ATTENTION}_map/{kind}s"
        half = write("Cast", normed, name=f"{place}_half", dtype=_HALF)
        weight, bias = (
            write.array(f"{name}.qkv.{part}")[..., columns] for part in ("weight", "bias")
        )
        product = write("MatMul", half, weight, name=f"{place}_product", dtype=_HALF)
        biased = write("Add", product, bias, name=f"{place}_biased", dtype=_HALF)
        shape = np.array([0, 0, self._architecture.num_heads, self._architecture.head_dim])
        split = write("Reshape", biased, shape, name=f"{place}_split", dtype=_HALF)
        return write("Transpose", split, name=f"{place}_of_heads", perm=[0, 2, 1, 3], dtype=_HALF)

    def _feed_forward(self, normed: ir.Value, name: str) -> ir.Value:
        half = self._write("Cast", normed, name=f"{name}.up/half", dtype=_HALF)
        is_gated = self._architecture.ffn == "swiglu"
        hidden = self._swiglu(half, name) if is_gated else self._mlp(half, name)
        return self._product(hidden, f"{name}.down", f"{name}.ls2")

    def _mlp(self, half: ir.Value, name: str) -> ir.Value:
        write = self._write
        weight, bias = (write.initializer(f"{name}.up.{kind}") for kind in ("weight", "bias"))
        hidden = write("MatMul", half, weight, name=f"{name}.up/product", dtype=_HALF)
        return write("BiasGelu", hidden, bias, name=f"{name}.up/gelu", dtype=_HALF, domain=_CONTRIB)

    def _swiglu(self, half: ir.Value, name: str) -> ir.Value:
        """Two matrix products instead of one, because a Split would copy its parts."""
        write = self._write
        parts = []
        for kind, weight, bias in zip(
            ("gate", "value"),
            np.split(write.array(f"{name}.up.weight"), 2, axis=1),
            np.split(write.array(f"{name}.up.bias"), 2),
            strict=True,
        ):
            product = write("MatMul", half, weight, name=f"{name}.{kind}/product", dtype=_HALF)
            parts.append(write("Add", product, bias, name=f"{name}.{kind}/biased", dtype=_HALF))
        gate, value = parts
        gate = write(
            "QuickGelu", gate, name=f"{name}.gate/silu", dtype=_HALF, domain=_CONTRIB, alpha=1.0
        )
        return write("Mul", gate, value, name=f"{name}/gated", dtype=_HALF)

    def _product(self, values: ir.Value, name: str, scale: str) -> ir.Value:
        """The last product of a branch, times LayerScale, in float32; its bias is added later.

        LayerScale is folded into the weights. If its factors are so small that the weights would
        lose digits in float16, they are stored multiplied by a power of two, which the product
        divides out again, exactly.
        """
        write = self._write
        gamma = self._gamma(scale)
        exact = write.array(f"{name}.weight").astype(np.float32) * gamma
        exponent = _exponent(exact)
        weight = np.ldexp(exact, exponent).astype(np.float16)
        if exponent:
            product = write(
                "FusedMatMul",
                values,
                weight,
                name=f"{name}/product",
                dtype=_HALF,
                domain=_CONTRIB,
                alpha=2.0**-exponent,
            )
        else:
            product = write("MatMul", values, weight, name=f"{name}/product", dtype=_HALF)
        return write("Cast", product, name=f"{name}/float", dtype=_FLOAT)

    def _add_and_norm(self, branch: ir.Value, name: str, scale: str, norm: str) -> ir.Value:
        """Add a branch and its bias to the residual stream, and normalise the sum."""
        write = self._write
        bias = write.array(f"{name}.bias") * self._gamma(scale)
        weight, shift = (write.initializer(f"{norm}.{kind}") for kind in ("weight", "bias"))
        normed, _, _, self._stream = write.several(
            "SkipLayerNormalization",
            branch,
            self._stream,
            weight,
            shift,
            bias,
            name=f"{norm}/skip",
            domain=_CONTRIB,
            used=(True, False, False, True),
            epsilon=_EPSILON,
        )
        return normed

    def _gamma(self, scale: str) -> np.ndarray:
        if self._architecture.layer_scale:
            return self._write.array(f"{scale}.gamma")
        return np.ones(self._architecture.embed_dim, np.float32)

    def _feed_head(self, index: int) -> None:
        """Connect the nodes after the blocks to the residual stream after block `index`."""
        stream = self._after[index].inputs[0]
        for use in list(stream.uses()) if stream is not None else []:
            if not module_of(use.node).startswith("blocks."):
                use.node.replace_input_with(use.idx, self._stream)


def _exponent(weight: np.ndarray) -> int:
    """The exponent of two that moves `weight` out of float16's subnormal range; 0 if not needed."""
    largest = float(np.abs(weight).max(initial=0))
    lost = weight.astype(np.float16).astype(np.float32) - weight
    if largest == 0 or np.linalg.norm(lost) <= np.linalg.norm(weight) * 2.0**-11:
        return 0
    return 14 - int(np.ceil(np.log2(largest)))  # the largest is then at most 2¹⁴ of 65504


def _drop_unused_initializers(graph: ir.Graph) -> None:
    used = {value.name for node in graph for value in node.inputs if value is not None}
    used |= {value.name for value in graph.inputs}
    for name in [name for name in graph.initializers if name not in used]:
        del graph.initializers[name]
