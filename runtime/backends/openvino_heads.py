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
    """A model of its own for all outputs of `model` that are not tokens.

    `model` loses these outputs. Instead it returns the values that the heads read: tokens, and the
    queries and keys of attention.
    """

    def __init__(self, core: Any, model: Any, options: Mapping[str, str]) -> None:
        results = [each for each in model.get_results() if not is_token_output(_name(each))]
        self.names: frozenset[str] = frozenset(map(_name, results))
        places = _places(model, results)
        sources = {_place(place.get_source_output()): place.get_source_output() for place in places}
        self._taps: dict[Any, str] = {each: f"tap_{index}" for index, each in enumerate(sources)}
        alone = self._cut(model, results, places, sources)
        self._return_taps(model, results, sources)
        self._request = core.compile_model(alone, "CPU", dict(options)).create_infer_request()

    def _cut(
        self, model: Any, results: Sequence[Any], places: Sequence[Any], sources: Mapping[Any, Any]
    ) -> Any:
        """The nodes behind `places` as a model, in which inputs replace the `sources`."""
        import openvino
        from openvino import opset1

        inputs = {}
        for source, output in sources.items():
            name = self._taps[source]
            inputs[source] = opset1.parameter(output.get_partial_shape(), np.float32, name)
            inputs[source].output(0).set_names({name})
        for place in places:
            source = _place(place.get_source_output())
            place.replace_source_output(inputs[source].output(0))
        wanted = [result.input_value(0) for result in results]
        parameters = [*model.get_parameters(), *inputs.values()]
        return openvino.Model(wanted, parameters, "heads").clone()

    def _return_taps(self, model: Any, results: Sequence[Any], sources: Mapping[Any, Any]) -> None:
        """Replace the `results` of `model` by the `sources`."""
        from openvino import opset1

        for result in results:
            model.remove_result(result)
        for source, output in sources.items():
            output.add_names({self._taps[source]})
        model.add_results([opset1.result(output) for output in sources.values()])
        model.validate_nodes_and_infer_types()

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
    """Move all outputs but tokens out of `model` into a model of their own, if there are any."""
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
