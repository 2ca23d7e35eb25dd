"""Bundle and images in, descriptors out: one ONNX Runtime session."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle import INPUT_NAME, OUTPUT_NAME, Bundle, Precision
from retrieval.errors import BundleError, MissingExtraError, ParameterError
from retrieval.images import RgbImage
from retrieval.machine import available_cores

Descriptors = NDArray[np.float32]
Provider = Literal["cpu", "cuda"]

_PROVIDERS: Final[dict[Provider, str]] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class Describer:
    """Describes images with a bundle's graph. Calls may come from any thread; one at a time is fastest.

    Args:
        bundle: the opened bundle.
        provider: where to compute; asking for one that is not available is an error, never a silent fallback.
        precision: which of the bundle's graphs.
        threads: of ONNX Runtime; by default every core this process may use.
        max_batch: larger inputs are described in pieces of this many images.

    Raises:
        BundleError: the graph cannot be loaded, or does not have the contract's input and output.
        ParameterError: the provider is not available on this machine.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: Provider = "cpu",
        precision: Precision = "fp32",
        threads: int | None = None,
        max_batch: int = 32,
    ) -> None:
        if max_batch < 1:
            raise ParameterError(f"max_batch {max_batch} is below 1")
        self.bundle = bundle
        self.provider = provider
        self.precision = precision
        self.threads = threads or available_cores()
        self.max_batch = max_batch
        self._session = self._open_session(_onnxruntime())
        self._check_contract()

    def describe(self, images: NDArray[np.uint8] | Sequence[RgbImage]) -> Descriptors:
        """Describe images that `decode_image` made with this bundle's preprocessing.

        Args:
            images: (N, H, W, 3) uint8 RGB, or a sequence of (H, W, 3); N may be 0.

        Returns:
            (N, D) float32, unit rows.

        Raises:
            ParameterError: another size or type than the bundle's input.
            BundleError: the graph returned something that is not a number.
        """
        size = (self.bundle.preprocessing.height, self.bundle.preprocessing.width, 3)
        for image in images:
            if image.shape != size or image.dtype != np.uint8:
                raise ParameterError(
                    f"an image is {image.shape} {image.dtype}, the bundle wants {size} uint8",
                    remedy="Decode it with the bundle's preprocessing (retrieval.images.decode_image)",
                )
        if len(images) == 0:
            return np.empty((0, self.bundle.descriptor_dim), np.float32)
        pieces = [
            self._session.run([OUTPUT_NAME], {INPUT_NAME: np.asarray(images[start : start + self.max_batch])})[0]
            for start in range(0, len(images), self.max_batch)
        ]
        descriptors: Descriptors = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if not np.isfinite(descriptors).all():
            raise BundleError("the graph returned a descriptor that is not finite", where=str(self.bundle.folder))
        return descriptors

    def warm_up(self) -> None:
        """Describe a blank batch once, so that the first real image does not pay for lazy initialisation."""
        preprocessing = self.bundle.preprocessing
        self.describe(np.zeros((1, preprocessing.height, preprocessing.width, 3), np.uint8))

    def _open_session(self, ort: ModuleType) -> Any:
        wanted = _PROVIDERS[self.provider]
        if wanted not in ort.get_available_providers():
            raise ParameterError(
                f"the provider {self.provider} is not available to the installed ONNX Runtime",
                remedy="Install sightfix[gpu] on a machine with a GPU, or choose the provider cpu",
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin while idle steal the cores from image decoding.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = self.bundle.graph_path(self.precision)
        try:
            session = ort.InferenceSession(str(path), options, providers=[wanted])
        except Exception as error:  # ONNX Runtime's exceptions share no base class but this
            raise BundleError(
                f"ONNX Runtime cannot load the graph ({error})", where=str(path), remedy="Export the bundle again"
            ) from error
        if session.get_providers()[0] != wanted:
            raise ParameterError(
                f"ONNX Runtime fell back from {wanted} to {session.get_providers()[0]}",
                remedy="Check the GPU driver, CUDA and cuDNN, or choose the provider cpu",
            )
        return session

    def _check_contract(self) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        preprocessing, dim = self.bundle.preprocessing, self.bundle.descriptor_dim
        found_in = [(i.name, i.type, i.shape[1:]) for i in inputs]
        found_out = [(o.name, o.type, o.shape[1:]) for o in outputs]
        if found_in != [(INPUT_NAME, "tensor(uint8)", [preprocessing.height, preprocessing.width, 3])] or (
            found_out != [(OUTPUT_NAME, "tensor(float)", [dim])]
        ):
            raise BundleError(
                f"the graph has input {found_in} and output {found_out}, which is not the bundle's contract",
                where=str(self.bundle.folder),
                remedy="Export the bundle again",
            )


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            "ONNX Runtime is not installed", remedy="Run: pip install 'sightfix[cpu]' (or [gpu] beside CUDA)"
        ) from error
    module: ModuleType = onnxruntime
    return module
