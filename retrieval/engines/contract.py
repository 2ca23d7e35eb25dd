"""The bundle's contract, checked on a graph that a runtime has loaded: one input, one output, their types and sizes."""

from collections.abc import Sequence

from retrieval.bundle import INPUT_NAME, OUTPUT_NAME, Bundle
from retrieval.errors import BundleError

# Name, type as numpy calls it, and shape without the batch.
TensorContract = tuple[str, str, list[int]]


def check_contract(bundle: Bundle, inputs: Sequence[TensorContract], outputs: Sequence[TensorContract]) -> None:
    """Check what a runtime says of a loaded graph against what the bundle's manifest says.

    Args:
        bundle: whose graph.
        inputs: name, type and shape without the batch of each input.
        outputs: the same of each output.

    Raises:
        BundleError: other inputs or outputs than the bundle's.
    """
    preprocessing = bundle.preprocessing
    wanted_in = [(INPUT_NAME, "uint8", [preprocessing.height, preprocessing.width, 3])]
    wanted_out = [(OUTPUT_NAME, "float32", [bundle.descriptor_dim])]
    if list(inputs) != wanted_in or list(outputs) != wanted_out:
        raise BundleError(
            f"the graph has input {list(inputs)} and output {list(outputs)}, which is not the bundle's contract",
            where=str(bundle.folder),
            remedy="Export the bundle again",
        )
