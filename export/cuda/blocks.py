"""Writes the transformer blocks with fused operators; see `fused.py`."""

import numpy as np
import onnx_ir as ir

from dinov2rt.bundle.architecture import Architecture
from dinov2rt.bundle.signature import ATTENTION
from dinov2rt.export.surgery import Writer, is_of_block, module_of

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
_EPSILON = 1e-6


class Blocks:
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
            domain=CONTRIB,
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
            uses = [use for use in every if not is_of_block(use.node)]
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
        return write("BiasGelu", hidden, bias, name=f"{name}.up/gelu", dtype=_HALF, domain=CONTRIB)

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
            "QuickGelu", gate, name=f"{name}.gate/silu", dtype=_HALF, domain=CONTRIB, alpha=1.0
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
                domain=CONTRIB,
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
            domain=CONTRIB,
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
            if not is_of_block(use.node):
                use.node.replace_input_with(use.idx, self._stream)


def _exponent(weight: np.ndarray) -> int:
    """The exponent of two that moves `weight` out of float16's subnormal range; 0 if not needed."""
    largest = float(np.abs(weight).max(initial=0))
    lost = weight.astype(np.float16).astype(np.float32) - weight
    if largest == 0 or np.linalg.norm(lost) <= np.linalg.norm(weight) * 2.0**-11:
        return 0
    return 14 - int(np.ceil(np.log2(largest)))  # the largest is then at most 2¹⁴ of 65504
