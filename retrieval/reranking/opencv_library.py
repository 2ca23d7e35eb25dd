"""OpenCV, set up to work inside threads that are already as many as there are cores."""

from types import ModuleType

from retrieval.errors import MissingExtraError


def opencv_module() -> ModuleType:
    """OpenCV.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError(
            f"re-ranking needs OpenCV ({error})", remedy="Run: pip install 'sightfix[rerank]'"
        ) from None
    # One number for the whole process. Photos are worked on several at a time: a pool of OpenCV's own for each of them
    # would only fight with that, and with the model.
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
    module: ModuleType = cv2
    return module
