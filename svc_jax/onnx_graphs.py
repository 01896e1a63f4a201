"""Functions of JAX as ONNX graphs of any length.

jax2onnx translates a function at fixed shapes only. Here it does so at two lengths: the
whole numbers in which the two graphs differ are sizes and positions, linear in the
length, and are computed from that of an input instead.
"""

import logging
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from svc_jax.errors import UserError

_LENGTH = "length"
INSTALL = 'pip install -e ".[train,onnx]" && pip install --no-deps jax2onnx'


def of_any_length(
    function: Callable,
    shapes: Callable,
    lengths: tuple[int, int],
    inputs: Sequence[str],
    output: str,
) -> bytes:
    """A function as an ONNX graph.

    Args:
      function: of arrays, one for each of `inputs`, to one array.
      shapes: length -> the jax.ShapeDtypeStruct of each input.
      lengths: two of them, at which nothing is cut short.
      inputs: names of the inputs.
      output: name of the output.

    Raises:
      UserError: if jax2onnx is not installed.
      ValueError: if the graphs differ in more than whole numbers linear in the length.
    """
    # They warn of examples that cannot be imported, and of shapes left open.
    for name in ("jax2onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import jax2onnx
    except ImportError as error:
        raise UserError(f"ONNX needs jax2onnx ({error}): {INSTALL}") from error

    cumsum = jnp.cumsum
    try:
        models = [
            jax2onnx.to_onnx(
                function, shapes(length), input_names=inputs, output_names=[output]
            )
            for length in lengths
        ]
    finally:
        jnp.cumsum = cumsum  # jax2onnx 0.17 leaves its own there
    _generalise(models, lengths)
    return models[0].SerializeToString()


def runner(content: bytes, inputs: Sequence[str]) -> Callable:
    """Runs a graph of one output on a CPU: (an array for each input) -> array."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # not what could be removed from the graph
    session = onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )

    def run(*arrays):
        (result,) = session.run(None, dict(zip(inputs, arrays, strict=True)))
        return result

    return run


def _generalise(models, lengths):
    """Makes the first of two models, which are of two lengths, one of any length."""
    import onnx
    from onnx import helper, numpy_helper

    main, other = (model.graph for model in models)
    nodes, linear = [_length_node(main, lengths[0])], {}
    for own, theirs in zip(_graphs(main), _graphs(other), strict=True):
        linear |= _take_sizes(own, theirs, lengths)
        _open_axes(own, theirs)
    for name, (slope, intercept) in linear.items():
        factor, addend, scaled = f"{name}_slope", f"{name}_intercept", f"{name}_scaled"
        main.initializer.append(numpy_helper.from_array(slope, factor))
        main.initializer.append(numpy_helper.from_array(intercept, addend))
        nodes.append(helper.make_node("Mul", [_LENGTH, factor], [scaled]))
        nodes.append(helper.make_node("Add", [scaled, addend], [name]))
    for position, node in enumerate(nodes):
        main.node.insert(position, node)
    onnx.checker.check_model(models[0])


def _graphs(graph):
    """A graph and those within it, the bodies of its loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _length_node(graph, length: int):
    """A node that finds the length: the size of an input's axis."""
    from onnx import helper

    name, axis = next(
        (value.name, number)
        for value in graph.input
        for number, axis in enumerate(value.type.tensor_type.shape.dim)
        if axis.dim_value == length
    )
    return helper.make_node("Shape", [name], [_LENGTH], start=axis, end=axis + 1)


def _open_axes(graph, other):
    """Leaves the sizes open in which the inputs and outputs of two graphs differ."""
    del graph.value_info[:]  # those of what is between
    pairs = zip(
        (*graph.input, *graph.output), (*other.input, *other.output), strict=True
    )
    for own, theirs in pairs:
        axes = (value.type.tensor_type.shape.dim for value in (own, theirs))
        for number, (axis, its) in enumerate(zip(*axes, strict=True)):
            if axis.dim_value != its.dim_value:
                axis.dim_param = f"{own.name}_{number}"


def _take_sizes(graph, other, lengths) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Takes out of a graph what depends on the length: name -> (slope, intercept)."""
    from onnx import numpy_helper

    def said(one):
        return [
            (node.op_type, node.input, node.output, plain(node)) for node in one.node
        ]

    def plain(node):
        return [one for one in node.attribute if not one.HasField("g")]

    if said(graph) != said(other):
        raise ValueError("the graphs of two lengths are made differently.")
    theirs = {tensor.name: tensor for tensor in other.initializer}
    found, kept = {}, []
    for tensor in graph.initializer:
        if tensor == theirs[tensor.name]:
            kept.append(tensor)
            continue
        values, longer = map(numpy_helper.to_array, (tensor, theirs[tensor.name]))
        are_sizes = values.dtype == np.int64 and values.ndim == 1
        if are_sizes and values.shape == longer.shape:
            slope, rest = np.divmod(longer - values, lengths[1] - lengths[0])
            if not rest.any():
                found[tensor.name] = slope, values - slope * lengths[0]
                continue
        raise ValueError(f"{tensor.name} depends on the length, not linearly.")
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return found
