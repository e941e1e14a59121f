"""An image file, by a path that the hospital's query returned, as plain pixels.

Only pixels leave this module: of a DICOM file nothing but what pixels are made of is ever parsed, so no patient's name
can end in a warning or an error. No decoder of somebody's own, no network: Pillow reads PNG and JPEG, pydicom reads
uncompressed and run-length coded DICOM by itself and baseline JPEG by Pillow.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client.opening import read_below
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
    raw = read_below(folder, path, MAX_BYTES)
    return None if raw is None else image_of(raw)


def image_of(raw: bytes) -> Image | None:
    """Return what an image's file shows, or None; raises CSL-507 where Pillow or pydicom is missing."""
    try:
        # Decoders keep warnings for standard error, and those of DICOM quote values.
        with warnings.catch_warnings(action="ignore"):
            return _dicom(raw) if raw[_PREAMBLE : _PREAMBLE + 4] == b"DICM" else _picture(raw)
    except ModuleNotFoundError as error:
        raise ConsiliumError(errors.DATA_MISSING_PACKAGE, "pip install 'consilium[data]'") from error
    except Exception:
        # What a damaged or hostile file makes of a decoder is anybody's guess; it must not fail the round (RULES 13).
        return None


def shrunk(image: Image, size: int) -> Image:
    """Return an image no larger than a square of ``size`` pixels needs, so that thousands of them fit in memory.

    Blocks of k by k pixels become their mean, with the largest k that leaves the shorter side at least ``size`` pixels;
    what is over at the right and at the bottom, fewer than k, is cut off. An image that is small enough stays as it is,
    and what happens to one depends on it and on ``size`` alone (RULES 12).

    image    (height, width, channels) uint8
    size     >= 1
    returns  (height // k, width // k, channels) uint8, its shorter side in [size, 2 size) where it had as much
    """
    height, width, channels = image.shape
    k = max(1, min(height, width) // size)
    if k == 1:
        return image
    rows, columns = height // k, width // k
    made = np.empty((rows, columns, channels), dtype=np.uint8)
    for row in range(rows):
        # A row of blocks at a time: the whole image in floating point would take four times its memory.
        block = image[row * k : (row + 1) * k, : columns * k].reshape(k, columns, k, channels)
        made[row] = np.rint(block.mean(axis=(0, 2), dtype=np.float64))
    return made


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
