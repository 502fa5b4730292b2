"""Keeps parts of a graph in float32 when OpenVINO computes in bfloat16: see docs/adr/0018.

With the hint bf16, OpenVINO computes every node in bfloat16, except nodes from which a path leads
to an output without a matrix product (`Graph::EnforceInferencePrecision` in its CPU plugin). The
residual stream has such a path; the norms and the position table have none. A test reads from the
compiled graph that these parts are in float32.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.runtime.backends.openvino_products import add_readers, insert_prelu

_SIZES_KEPT = 8
_PRODUCTS = ("MatMul", "Convolution")
_AFFINE = ("Multiply", "Add")
_EXCHANGED = [0, 2, 1, 3]


def keep_norms(model: Any) -> None:
    """Keep norms in float32, by giving each a path to an output without a matrix product.

    A norm that only products read rounds its result to bfloat16 itself, see `_rounded`. Norms that
    are rounded to bytes at once stay as they are: OpenVINO does both in one step.
    """
    norms = [node for node in model.get_ordered_ops() if node.get_type_name() == "MVN"]
    outputs = [each for each in map(_scaled, norms) if not _becomes_bytes(each)]
    add_readers(model, [each for each in outputs if _readers(each) != {"MatMul"}])
    rounded = [_rounded(each) for each in outputs if _readers(each) == {"MatMul"}]
    for reader in add_readers(model, rounded):
        _compute_in_bf16(reader)


def _rounded(norm: Any) -> Any:
    """A PRelu, computed in bfloat16, between `norm` and its readers: see `insert_prelu`.

    It makes the norm write bfloat16, which the products would otherwise make of float32 in a pass
    of its own.
    """
    prelu = insert_prelu(norm)
    _compute_in_bf16(prelu)
    return prelu.output(0)


def _compute_in_bf16(node: Any) -> None:
    """Have OpenVINO compute `node` in bfloat16, even though its path to an output has no product.

    The name is that of OpenVINO's CPU plugin. A version that ignores it computes the same values,
    more slowly.
    """
    node.get_rt_info()["enforceBF16evenForGraphTail"] = "YES"


def widen_convolutions(model: Any) -> None:
    """Make convolutions of a single column of patches compute one more, and cut it off again.

    On CPUs with AMX, OpenVINO 2026.4.1 computes a wrong result, or NaN, if the result is a single
    column of five rows or more: images that are one patch wide. A second column avoids that kernel.
    Where the number of columns is unknown, the graph decides it at each call.
    """
    for node in [each for each in model.get_ops() if each.get_type_name() == "Convolution"]:
        columns = node.get_output_partial_shape(0)[3]
        if columns.is_dynamic or columns.get_length() == 1:
            _widen(node)


def _widen(convolution: Any) -> None:
    """Widen `convolution`, a patch embedding: its kernel is as wide as its stride."""
    from openvino import opset1, opset8  # import_openvino was here before

    users = list(convolution.output(0).get_target_inputs())
    images = convolution.input_value(0)
    stride = convolution.get_attributes()["strides"][1]
    width = opset8.gather(opset1.shape_of(images), np.array([3]), np.int64(0))
    columns = opset1.divide(width, np.array([stride]))
    is_single = opset1.convert(opset1.equal(columns, np.array([1])), np.int64)
    more = opset1.multiply(is_single, np.array([stride]))
    none = np.zeros(3, np.int64)
    after = opset1.concat([none, more], 0)
    wider = opset1.pad(images, np.zeros(4, np.int64), after, "constant", np.float32(0))
    convolution.input(0).replace_source_output(wider.output(0))
    first, step, axis = (np.array([value]) for value in (0, 1, 3))
    cut = opset8.slice(convolution.output(0), first, columns, step, axis)
    for user in users:
        user.replace_source_output(cut.output(0))


def keep_embedding(model: Any) -> None:
    """Have patch embeddings write float32, which the residual stream begins with.

    Their sums are float32 anyway. A PRelu is fused into the convolution, see `insert_prelu`. It has
    a path to an output without a product, so its result is float32.
    """
    for node in [each for each in model.get_ops() if each.get_type_name() == "Convolution"]:
        insert_prelu(node.output(0))


def mixes_up_heads(model: Any) -> bool:
    """Whether OpenVINO 2026.4.1 would compute attention of `model`, of known shapes, wrongly.

    In bfloat16 it does where there are as many tokens as heads: [B, N, heads, width] with its
    second and third axis exchanged has the same shape. It is right where shapes are dynamic.
    """
    return any(
        shape.is_static and list(order.get_data()) == _EXCHANGED and shape[1] == shape[2]
        for shape, order in (
            (node.get_input_partial_shape(0), node.input_value(1).get_node())
            for node in model.get_ops()
            if node.get_type_name() == "Transpose"
        )
        if order.get_type_name() == "Constant"
    )


def _scaled(norm: Any) -> Any:
    """The output of a norm behind its scale and shift, where the graph has them."""
    output = norm.output(0)
    while True:
        users = [user.get_node() for user in output.get_target_inputs()]
        if len(users) != 1 or users[0].get_type_name() not in _AFFINE:
            return output
        output = users[0].output(0)


def _becomes_bytes(output: Any) -> bool:
    return "FakeQuantize" in _readers(output)


def _readers(output: Any) -> set[str]:
    """The kinds of nodes that read `output`."""
    return {reader.get_node().get_type_name() for reader in output.get_target_inputs()}


class PositionTables:
    """The position table of each size of images, computed in float32 once a size.

    `model` loses that part, and has an input more in its place. Also what a call would compute
    anew for a size that it has seen is saved.
    """

    def __init__(self, core: Any, model: Any, options: Mapping[str, str]) -> None:
        import openvino
        from openvino import opset1

        places = list(_size_dependent(model))
        self._names = [f"size_dependent_{index}" for index, _ in enumerate(places)]
        self._kept: OrderedDict[tuple[object, ...], dict[str, NDArray[np.float32]]] = OrderedDict()
        self._request: Any = None
        if not places:
            return
        parameters = model.get_parameters()
        outputs = [place.get_source_output() for place in places]
        alone = openvino.Model(outputs, parameters, "positions").clone()
        self._request = core.compile_model(alone, "CPU", dict(options)).create_infer_request()
        given = []
        for name, place, output in zip(self._names, places, outputs, strict=True):
            given.append(opset1.parameter(output.get_partial_shape(), np.float32, name))
            given[-1].output(0).set_names({name})
            place.replace_source_output(given[-1].output(0))
        model.add_parameters(given)
        model.validate_nodes_and_infer_types()

    def of(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """The inputs that `model` has more, for a call with `feed`; not to be written to."""
        if self._request is None:
            return {}
        size = tuple((value.shape[1:] or value.tobytes()) for value in feed.values())
        if size not in self._kept:
            self._kept[size] = self._computed(feed)
        self._kept.move_to_end(size)
        if len(self._kept) > _SIZES_KEPT:
            self._kept.popitem(last=False)
        return self._kept[size]

    def _computed(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        one_image = {name: value if value.ndim == 1 else value[:1] for name, value in feed.items()}
        results = self._request.infer(one_image, share_inputs=False)
        return dict(zip(self._names, map(np.array, results.values()), strict=True))


def _size_dependent(model: Any) -> Iterator[Any]:
    """Inputs of nodes that read a float32 product of what depends on the size of images alone."""
    of_pixels: set[str] = set()
    of_products: set[str] = set()
    for node in model.get_ordered_ops():
        name, kind = node.get_friendly_name(), node.get_type_name()
        if kind == "ShapeOf":
            continue
        sources = {value.get_node().get_friendly_name() for value in node.input_values()}
        if kind in _PRODUCTS or sources & of_products:
            of_products.add(name)
        if kind == "Parameter" or sources & of_pixels:
            of_pixels.add(name)
        if name in of_pixels:
            for place in node.inputs():
                source = place.get_source_output()
                source_name = source.get_node().get_friendly_name()
                if source_name in of_products - of_pixels and _is_one_table(source):
                    yield place


def _is_one_table(output: Any) -> bool:
    """Whether it is float32 and the same for every image of a batch, [1, ...]."""
    shape = output.get_partial_shape()
    is_float = output.get_element_type().get_type_name() == "f32"
    return is_float and shape.rank.is_static and len(shape) > 1 and shape[0] == 1
