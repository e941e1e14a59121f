"""An image file, by a path that the hospital's query returned, as plain pixels.

Only pixels leave this module: of a DICOM file nothing but what pixels are made of is ever parsed, so no patient's name
can end in a warning or an error. No decoder of somebody's own, no network: Pillow reads PNG and JPEG, pydicom reads
uncompressed and run-length coded DICOM by itself and baseline JPEG by Pillow.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common import errors
from common.contents import Image
from common.errors import ConsiliumError

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_PIXELS = 1 << 26
"""Of an image: 64 million, more than a mammogram has. What claims more is not opened, so that it cannot fill memory."""
MAX_BYTES = 1 << 29
_PREAMBLE = 128
_DECODERS = {
    "1.2.840.10008.1.2": "",
    "1.2.840.10008.1.2.1": "",
    "1.2.840.10008.1.2.5": "pydicom",
    "1.2.840.10008.1.2.4.50": "pillow",
}
"""Transfer syntaxes [DICOM PS3.6, annex A]: implicit and explicit little endian, run-length, baseline JPEG."""
_TAGS = [
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept",
    "RescaleType", "WindowCenter", "WindowWidth", "VOILUTFunction", "PixelData",
]  # fmt: skip


def read_image(folder: Path, path: str) -> Image | None:
    """Return an image, or None for one that cannot be read: it contributes nothing and stops nobody (RULES 13).

    folder  what the path is below once links are followed
    path    relative to it

    Grey values of more than 8 bits are scaled by the file's own window, else by their own least and greatest: what
    happens to an image depends on that image alone (RULES 12).

    Raises CSL-502 for a path that leads out of the folder, CSL-507 where Pillow or pydicom is missing.
    """
    raw = _read(_inside(folder, path))
    if raw is None:
        return None
    try:
        # Decoders keep warnings for standard error, and those of DICOM quote values.
        with warnings.catch_warnings(action="ignore"):
            return _dicom(raw) if raw[_PREAMBLE : _PREAMBLE + 4] == b"DICM" else _picture(raw)
    except ModuleNotFoundError as error:
        raise ConsiliumError(errors.DATA_MISSING_PACKAGE, "pip install 'consilium[data]'") from error
    except Exception:
        # What a damaged or hostile file makes of a decoder is anybody's guess; it must not fail the round (RULES 13).
        return None


def _inside(folder: Path, path: str) -> Path:
    """Resolve a path; the detail of the error does not repeat it, because files are named after patients."""
    root = folder.resolve()
    if "\x00" in path or Path(path).is_absolute():
        raise ConsiliumError(errors.DATA_FORBIDDEN, "data.columns.path: a path is not relative")
    try:
        found = (root / path).resolve()
    except (OSError, RuntimeError):
        # A loop of links leads nowhere, and a name too long to nothing.
        return root
    if not found.is_relative_to(root):
        raise ConsiliumError(errors.DATA_FORBIDDEN, f"data.columns.path: a path leads out of {folder}")
    return found


def _read(path: Path) -> bytes | None:
    try:
        # Not to wait for a writer where there is a pipe, and not to follow a link that has just been made.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            raw = file.read(MAX_BYTES + 1)
    except OSError:
        return None
    return raw if len(raw) <= MAX_BYTES else None


def _picture(raw: bytes) -> Image | None:
    import PIL.Image
    from PIL.ImageOps import exif_transpose

    with PIL.Image.open(io.BytesIO(raw), formats=("PNG", "JPEG")) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            return None
        turned = exif_transpose(opened)
        if turned.mode.startswith("I"):
            return _scaled(np.asarray(turned, dtype=np.float64))[..., None]
        if turned.mode in ("1", "L", "LA"):
            return np.asarray(turned.convert("L"), dtype=np.uint8)[..., None]
        return np.asarray(turned.convert("RGB"), dtype=np.uint8)


def _dicom(raw: bytes) -> Image | None:
    from pydicom import config, dcmread

    before = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.IGNORE
    try:
        return _dicom_pixels(dcmread(io.BytesIO(raw), specific_tags=list(_TAGS)))
    finally:
        config.settings.reading_validation_mode = before


def _dicom_pixels(found: Dataset) -> Image | None:
    from pydicom.pixels.processing import apply_rescale, convert_color_space
    from pydicom.pixels.utils import pixel_array

    syntax = str(found.file_meta.TransferSyntaxUID)
    if syntax not in _DECODERS or int(found.get("NumberOfFrames") or 1) != 1:
        return None
    samples, interpretation = int(found.SamplesPerPixel), str(found.PhotometricInterpretation)
    if not 0 < int(found.Rows) * int(found.Columns) * samples <= MAX_PIXELS:
        return None
    # raw: colours are converted below, once.
    pixels = pixel_array(found, raw=True, decoding_plugin=_DECODERS[syntax])
    if samples == 3 and pixels.ndim == 3 and pixels.dtype == np.uint8:
        if interpretation in ("YBR_FULL", "YBR_FULL_422"):
            pixels = convert_color_space(pixels, interpretation, "RGB")
        elif interpretation != "RGB":
            return None
        return np.ascontiguousarray(pixels, dtype=np.uint8)
    if samples != 1 or pixels.ndim != 2 or interpretation not in ("MONOCHROME1", "MONOCHROME2"):
        return None
    window = _window(found)
    if window is None and pixels.dtype == np.uint8:
        grey = pixels
    else:
        grey = _scaled(np.asarray(apply_rescale(pixels, found), dtype=np.float64), window)
    return (255 - grey if interpretation == "MONOCHROME1" else grey)[..., None]


def _window(found: Dataset) -> tuple[float, float] | None:
    """Return the least and greatest value of the first window that the file states [DICOM PS3.3, C.11.2.1.2]."""
    centre, width = (found.get(name) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or str(found.get("VOILUTFunction") or "LINEAR") == "SIGMOID":
        return None
    middle, span = (float(value if isinstance(value, (int, float)) else value[0]) for value in (centre, width))
    # LINEAR counts whole values: a window of width 1 is a threshold.
    return (middle - 0.5 - (span - 1) / 2, middle - 0.5 + (span - 1) / 2) if span > 1 else None


def _scaled(values: NDArray[np.float64], window: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Spread values between two bounds over 0 to 255; a flat image is 0."""
    low, high = window if window is not None else (values.min(), values.max())
    if not np.isfinite(high - low) or high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.rint((values - low).clip(0, high - low) * (255.0 / (high - low))).astype(np.uint8)
