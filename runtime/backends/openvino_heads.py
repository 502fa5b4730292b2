"""Heads in float32 beside a backbone in bfloat16: two models in place of one.

The official evaluation computes heads in float32, whatever the backbone is. OpenVINO has one
precision for all products of a model (see `openvino_bf16.py`), so heads get a model of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinov2rt.bundle.signature import is_token_output


class Heads:
    """What computes all outputs of `model` that are no tokens, as a model of its own.

    `model` loses these outputs, and gives the tokens (and attention's queries and keys) that they
    are computed from instead.
    """

    def __init__(self, core: Any, model: Any, options: Mapping[str, str]) -> None:
        import openvino
        from openvino import opset1

        results = [each for each in model.get_results() if not is_token_output(_name(each))]
        self.names = frozenset(map(_name, results))
        places = _places(model, results)
        sources = {_place(place.get_source_output()): place for place in places}
        self._taps = {source: f"tap_{index}" for index, source in enumerate(sources)}
        inputs, taps = [], []
        for source, place in sources.items():
            output = place.get_source_output()
            taps.append(output)
            given = opset1.parameter(output.get_partial_shape(), np.float32, self._taps[source])
            given.output(0).set_names({self._taps[source]})
            inputs.append(given)
        of_source = dict(zip(sources, inputs, strict=True))
        for place in places:
            place.replace_source_output(of_source[_place(place.get_source_output())].output(0))
        wanted = [result.input_value(0) for result in results]
        alone = openvino.Model(wanted, [*model.get_parameters(), *inputs], "heads").clone()
        for result in results:
            model.remove_result(result)
        for output, name in zip(taps, self._taps.values(), strict=True):
            output.add_names({name})
        model.add_results([opset1.result(output) for output in taps])
        model.validate_nodes_and_infer_types()
        self._request = core.compile_model(alone, "CPU", dict(options)).create_infer_request()

    def run(
        self, backbone: Any, tensors: Mapping[str, Any], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """The `outputs`, copied, after a call of the request `backbone` with input `tensors`."""
        for name, tensor in tensors.items():
            self._request.set_tensor(name, tensor)
        for name in self._taps.values():
            self._request.set_tensor(name, backbone.get_tensor(name))
        self._request.infer()
        return {name: self._request.get_tensor(name).data.copy() for name in outputs}


def heads_of(core: Any, model: Any, options: Mapping[str, str]) -> Heads | None:
    """Take the heads out of `model`, if it has outputs other than tokens."""
    has_heads = any(not is_token_output(_name(result)) for result in model.get_results())
    return Heads(core, model, options) if has_heads else None


def _places(model: Any, results: Sequence[Any]) -> list[Any]:
    """Inputs of nodes for `results` alone that read float32 values of the backbone's nodes."""
    wanted = {_name(result) for result in results}
    of_tokens = _behind([each for each in model.get_results() if _name(each) not in wanted])
    own = _behind(results) - of_tokens
    of_pixels = _depend_on_pixels(model)
    return [
        place
        for node in model.get_ordered_ops()
        if node.get_friendly_name() in own
        for place in node.inputs()
        if place.get_source_output().get_node().get_friendly_name() in of_tokens & of_pixels
        and place.get_element_type().get_type_name() == "f32"
        and node.get_type_name() != "ShapeOf"
    ]


def _behind(results: Sequence[Any]) -> set[str]:
    """Names of all nodes that `results` are computed from."""
    found: set[str] = set()
    left = list(results)
    while left:
        node = left.pop()
        if node.get_friendly_name() not in found:
            found.add(node.get_friendly_name())
            left += [value.get_node() for value in node.input_values()]
    return found


def _depend_on_pixels(model: Any) -> set[str]:
    """Names of the nodes whose values depend on pixels, and not on sizes alone."""
    found: set[str] = set()
    for node in model.get_ordered_ops():
        sources = {value.get_node().get_friendly_name() for value in node.input_values()}
        is_shape = node.get_type_name() == "ShapeOf"
        if node.get_type_name() == "Parameter" or (sources & found and not is_shape):
            found.add(node.get_friendly_name())
    return found


def _name(result: Any) -> str:
    return str(result.output(0).get_any_name())


def _place(output: Any) -> tuple[str, int]:
    return output.get_node().get_friendly_name(), output.get_index()
