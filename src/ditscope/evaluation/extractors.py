"""From pictures to feature vectors: the bundled classifier, or any network that you name.

    extractor("emoji")                                  # the bundled classifier
    extractor("inception.pt", pixels="uint8", size=299) # TorchScript
    extractor("inception.onnx", pixels="unit", size=299)
    extractor("my_project.features:inception")          # Python: an object, or a class to call
    extractor("features.py:Inception")

A network takes pictures (B, 3, h, w) and returns features (B, D), or features and scores (B, K) of
K classes. A Python object may say what it takes with attributes `pixels` and `size`, and what its
scores mean with `class_names`. A file that is named here is a program: it runs.

Shapes: B rows, h and w pixels, D features, K classes.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ditscope.core.atomic import file_sha256
from ditscope.core.manifest import Record
from ditscope.data.pictures import fitted
from ditscope.errors import BadCheckpoint, BadRequest, NumericalError, foreign, missing_package
from ditscope.evaluation.classifier import SIZE, bundled_classifier, load_classifier
from ditscope.evaluation.onnx_network import OnnxNetwork
from ditscope.model.weights import weights_sha256

BUNDLED = "emoji"

Pixels = Literal["uint8", "unit", "signed"]
"""What a network takes: whole numbers 0 to 255, float32 in [0, 1], or float32 in [-1, 1]."""


class FeatureProtocol(Record):
    """Everything about an extractor that decides its numbers."""

    name: str
    kind: Literal["bundled", "torchscript", "onnx", "python"]
    sha256: str
    pixels: Pixels
    size: tuple[int, int] | None  # height and width it is given; None: pictures as they are
    resize: str
    arithmetic: str = "float32"
    features: int | None = None  # known after the first picture
    class_names: tuple[str, ...] | None = None


RESIZE = "cover, cut around the middle; Pillow's bicubic, antialiased, 8 bits"


@dataclass(frozen=True)
class Extractor:
    """A network with what it must be given."""

    protocol: FeatureProtocol
    network: Callable[[Tensor], Any]
    device: torch.device

    @torch.inference_mode()
    def __call__(
        self, pictures: Sequence[NDArray[np.uint8]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Features (B, D) and, if it has classes, scores (B, K) of B pictures (h, w, 3) uint8.

        Raises:
            BadRequest: the pictures differ in size and are not resized, or the network fails or
                returns something else.
            NumericalError: it returns NaN or Inf.
        """
        fitting = [fitted_array(picture, self.protocol.size) for picture in pictures]
        sizes = sorted({picture.shape[:2] for picture in fitting})
        if len(sizes) > 1:
            raise BadRequest(
                f"pictures of {len(sizes)} sizes, such as {sizes[0]} and {sizes[-1]}",
                field="feature_size",
                expected="a side in pixels that all are resized to",
            )
        pixels = np.stack(fitting)
        x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(self.device)
        if self.protocol.pixels != "uint8":
            x = x.float() / 255 if self.protocol.pixels == "unit" else x.float() / 127.5 - 1
        try:
            output = self.network(x)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError) as reason:
            raise BadRequest(
                f"fails on pictures {tuple(x.shape)} {x.dtype}: {foreign(reason)}",
                file=self.protocol.name,
                field="features",
            ) from None
        features, *rest = output if isinstance(output, tuple | list) else (output,)
        found = self._checked(features, "features", len(pictures))
        return found, self._checked(rest[0], "scores", len(pictures)) if rest else None

    def _checked(self, value: object, what: str, rows: int) -> NDArray[np.float32]:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if (
            not isinstance(value, Tensor)
            or value.ndim < 2
            or value.numel() != rows * value.shape[1]
        ):
            raise BadRequest(
                f"returned {foreign(shape)} as {what} of {rows} pictures",
                file=self.protocol.name,
                field="features",
                expected=f"({rows}, D), or ({rows}, D, 1, 1)",
            )
        found = value.flatten(1).float().cpu().numpy()
        if not np.isfinite(found).all():
            raise NumericalError(f"NaN or Inf in the {what}", file=self.protocol.name)
        return found


def extractor(
    name: str,
    *,
    pixels: str | None = None,
    size: int | None = None,
    device: torch.device | None = None,
) -> Extractor:
    """The extractor called `name`: see the top of this file.

    Args:
        name: "emoji", a TorchScript (.pt, .pth, .ts, .torchscript) or ONNX file, or a Python
            object as `package.module:name` or `file.py:name`.
        pixels: "uint8", "unit" or "signed". A file must be told, since it does not say.
        size: side in pixels that pictures are resized to; None: as the object says, or not at all.
        device: where a torch network runs.

    Raises:
        BadRequest: there is no such thing, or `pixels` or `size` is missing or out of range.
        BadCheckpoint: a file that cannot be read.
        ResourceError: an ONNX file, and onnxruntime is not installed.
    """
    place = device or torch.device("cpu")
    if pixels is not None and pixels not in get_args(Pixels):
        raise BadRequest(
            f"found {foreign(pixels)}", field="pixels", expected=", ".join(get_args(Pixels))
        )
    if size is not None and not 1 <= size <= 4096:
        raise BadRequest(f"found {size}", field="size", expected="1 to 4096 pixels")
    square = None if size is None else (size, size)
    if name == BUNDLED:
        return _bundled(place, pixels, size)
    suffix = Path(name).suffix.lower()
    if suffix in (".pt", ".pth", ".ts", ".torchscript"):
        return _torchscript(Path(name), _told(pixels, name), square, place)
    if suffix == ".onnx":
        return _onnx(Path(name), _told(pixels, name), square)
    if ":" in name:
        return _python(name, pixels, square, place)
    raise BadRequest(
        f"found {foreign(name)!r}",
        field="features",
        expected="emoji, a .pt or .onnx file, package.module:name or file.py:name",
    )


def fitted_array(image: NDArray[np.uint8], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """A picture (h, w, 3) brought to `size`, as `RESIZE` says; as it is where that is None."""
    if size is None or image.shape[:2] == size:
        return image
    return np.asarray(fitted(Image.fromarray(image), size))


def _told(pixels: str | None, name: str) -> Pixels:
    if pixels is None:
        raise BadRequest(
            "a file does not say which pixels it takes",
            file=name,
            field="pixels",
            expected="uint8 (0 to 255), unit (0 to 1) or signed (-1 to 1)",
        )
    return pixels  # type: ignore[return-value]


def _bundled(device: torch.device, pixels: str | None, size: int | None) -> Extractor:
    if pixels is not None or size is not None:
        raise BadRequest("the bundled classifier says itself what it takes", field="features")
    file = bundled_classifier()
    network, facts = load_classifier(file)
    protocol = FeatureProtocol(
        name=BUNDLED,
        kind="bundled",
        sha256=file_sha256(file),
        pixels="signed",
        size=(SIZE, SIZE),
        resize=RESIZE,
        class_names=facts.class_names,
    )
    return Extractor(protocol, network.to(device), device)


def _torchscript(
    file: Path, pixels: Pixels, size: tuple[int, int] | None, device: torch.device
) -> Extractor:
    digest = _digest(file)
    try:
        with warnings.catch_warnings():
            # The format is old and the usual Inception file comes in it.
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(str(file), map_location=device).eval()
        names = {argument.name for argument in network.forward.schema.arguments}
    except (RuntimeError, ValueError, AttributeError) as reason:
        raise BadCheckpoint(
            f"is not TorchScript: {foreign(reason)}", file=file, expected="torch.jit.save's file"
        ) from None
    protocol = _protocol(str(file), "torchscript", digest, pixels, size)
    if "return_features" in names:  # the usual Inception file: without it there are only scores
        return Extractor(protocol, lambda x: network(x, return_features=True), device)
    return Extractor(protocol, network, device)


def _onnx(file: Path, pixels: Pixels, size: tuple[int, int] | None) -> Extractor:
    digest = _digest(file)
    try:
        network = OnnxNetwork(file)
    except ModuleNotFoundError as reason:
        raise missing_package(reason, f"reading {foreign(file)}") from None
    if network.whole_numbers and pixels != "uint8":
        raise BadRequest(f"found {pixels}", file=file, field="pixels", expected="uint8: it says so")
    protocol = _protocol(str(file), "onnx", digest, pixels, size)
    return Extractor(protocol, network, torch.device("cpu"))


def _python(
    name: str, pixels: str | None, size: tuple[int, int] | None, device: torch.device
) -> Extractor:
    place, _, attribute = name.rpartition(":")
    source, module = _imported(place, name)
    try:
        found = getattr(module, attribute)
    except AttributeError:
        raise BadRequest(
            f"{foreign(place)} has no {foreign(attribute)!r}", field="features"
        ) from None
    network = _run(found, name) if inspect.isclass(found) else found
    if not callable(network):
        raise BadRequest(f"{foreign(name)} cannot be called", field="features")
    takes = pixels or getattr(network, "pixels", None)
    if takes not in get_args(Pixels):
        raise BadRequest(
            f"{foreign(name)} does not say which pixels it takes, found {foreign(takes)}",
            field="pixels",
            expected=f"an attribute `pixels`, or the option: {', '.join(get_args(Pixels))}",
        )
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if isinstance(network, nn.Module):
        network = network.eval().to(device)
        digest = hashlib.sha256(
            (digest + weights_sha256(network.state_dict())).encode()
        ).hexdigest()
    names = getattr(network, "class_names", None)
    side = getattr(network, "size", None)
    if size is None and isinstance(side, int):
        size = (side, side)
    protocol = _protocol(name, "python", digest, takes, size)
    known = None if names is None else tuple(str(each) for each in names)
    return Extractor(protocol.model_copy(update={"class_names": known}), network, device)


def _imported(place: str, name: str) -> tuple[Path, Any]:
    """The source file and the module at `place`."""
    if place.endswith(".py"):
        file = Path(place)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        if not file.is_file() or spec is None or spec.loader is None:
            raise BadRequest("no such file", file=file, field="features")
        module = importlib.util.module_from_spec(spec)
        loader = spec.loader
        _run(lambda: loader.exec_module(module), name)
        return file, module
    module = _run(lambda: importlib.import_module(place), name)
    if getattr(module, "__file__", None) is None:
        raise BadRequest(f"{foreign(place)} has no source file", field="features")
    return Path(str(module.__file__)), module


def _run(code: Callable[[], Any], name: str) -> Any:
    """What the user's code returns; what it raises is an error of the user's, not of ours."""
    try:
        return code()
    except Exception as reason:
        raise BadRequest(
            f"{foreign(name)} fails: {type(reason).__name__}: {foreign(reason)}",
            field="features",
            fix="a module must be on PYTHONPATH; `file.py:name` names a file",
        ) from reason


def _protocol(
    name: str, kind: Any, digest: str, pixels: Any, size: tuple[int, int] | None
) -> FeatureProtocol:
    return FeatureProtocol(
        name=name, kind=kind, sha256=digest, pixels=pixels, size=size, resize=RESIZE
    )


def _digest(file: Path) -> str:
    try:
        return file_sha256(file)
    except OSError as reason:
        raise BadCheckpoint(f"cannot be read: {reason.strerror}", file=file) from None
