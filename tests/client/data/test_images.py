"""Images by path: pixels come back, names stay in the file, and a broken file harms nobody else's."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from client import images
from client.images import read_image, shrunk
from common.contents import Image
from common.errors import ConsiliumError

pillow = pytest.importorskip("PIL.Image")
pydicom = pytest.importorskip("pydicom")

GREY = (np.arange(48).reshape(6, 8) * 5).astype(np.uint8)
COLOUR = np.stack([GREY, GREY.T.reshape(6, 8), 255 - GREY], axis=-1)
NONE: Mapping[str, object] = {}
NAME = "Doe^Jane-4711"


def picture(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    pillow.fromarray(pixels).save(file, kind)
    return file.getvalue()


def dicom(pixels: np.ndarray, fields: Mapping[str, object] = NONE, syntax: str | None = None) -> bytes:
    """Write a file with a patient's name in it, and one value that no reader should accept."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset("made", {}, file_meta=meta, preamble=bytes(128))
    made.PatientName = NAME
    with warnings.catch_warnings(action="ignore"):
        made.PatientBirthDate = f"not a date {NAME}"
    made.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    made.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        made.PlanarConfiguration = 0
    made.Rows, made.Columns = pixels.shape[:2]
    made.BitsAllocated = made.BitsStored = pixels.dtype.itemsize * 8
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes()
    for name, value in fields.items():
        setattr(made, name, value)
    if syntax is not None:
        made.compress(syntax)
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        made.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Image | None]:
    def through(raw: bytes) -> Image | None:
        (tmp_path / "image").write_bytes(raw)
        return read_image(tmp_path, "image")

    return through


Read = Callable[[bytes], Image | None]


def test_a_png_and_a_jpeg_are_read(read: Read) -> None:
    for pixels in (GREY, COLOUR):
        found = read(picture(pixels))
        assert found is not None
        assert found.dtype == np.uint8
        assert np.array_equal(found, pixels.reshape(6, 8, -1))
    found = read(picture(np.full((16, 16), 99, dtype=np.uint8), "JPEG"))
    assert found is not None
    assert found.shape == (16, 16, 1)
    assert np.abs(found.astype(int) - 99).max() <= 2


def test_sixteen_bits_are_spread_over_eight(read: Read) -> None:
    deep = (GREY.astype(np.uint16) * 257)[::-1]
    for raw in (picture(deep), dicom(deep)):
        found = read(raw)
        assert found is not None
        assert (found.min(), found.max(), found.shape) == (0, 255, (6, 8, 1))
        assert np.array_equal(np.argsort(found, axis=None), np.argsort(deep, axis=None))


@pytest.mark.parametrize("syntax", [None, "1.2.840.10008.1.2.5"])
def test_a_dicom_file_is_read_plain_or_run_length_coded(read: Read, syntax: str | None) -> None:
    for pixels in (GREY, COLOUR):
        found = read(dicom(pixels, syntax=syntax))
        assert found is not None
        assert np.array_equal(found, pixels.reshape(6, 8, -1))


def test_the_window_of_the_file_and_inverted_greys_are_heeded(read: Read) -> None:
    """Hounsfield units: the stored value less 1,024; a window of 100 about 0 shows 974 to 1,074 of what is stored."""
    stored = np.array([[900, 974, 1024, 1074, 1200]], dtype=np.int16)
    window = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 0.5, "WindowWidth": 101}
    found = read(dicom(stored, window))
    assert found is not None
    assert found[0, :, 0].tolist() in ([0, 0, 127, 255, 255], [0, 0, 128, 255, 255])
    inverted = read(dicom(stored, {"PhotometricInterpretation": "MONOCHROME1", **window}))
    assert inverted is not None
    assert np.array_equal(inverted, 255 - found)


def test_nothing_of_the_patient_leaves_a_dicom_file(
    read: Read, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = dicom(GREY)
    assert NAME.encode() in whole
    files = (whole, whole[:-9], whole[: whole.index(NAME.encode()) + 4], dicom(GREY, {"Rows": 7}))
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        for raw in files:
            read(raw)
    said = caplog.text + "".join(str(item.message) for item in recwarn) + "".join(capfd.readouterr())
    assert NAME not in said
    assert "not a date" not in said


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no image at all",
        bytes(128) + b"DICM",
        bytes(128) + b"DICMrubbish" * 40,
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        b"GIF89a\x01\x00\x01\x00\x00\x00\x00;",
    ],
)
def test_what_is_no_image_contributes_nothing(read: Read, raw: bytes) -> None:
    assert read(raw) is None


def test_a_damaged_image_is_never_half_an_image(read: Read) -> None:
    """Of a PNG the checksum at its end may be missing: all pixels are there."""
    for whole in (picture(COLOUR), dicom(GREY), dicom(GREY, syntax="1.2.840.10008.1.2.5")):
        wanted = read(whole)
        assert wanted is not None
        torn = [read(whole[:end]) for end in range(0, len(whole), 7)]
        assert all(found is None or np.array_equal(found, wanted) for found in torn)
        assert sum(found is None for found in torn) > len(torn) * 0.7


@pytest.mark.parametrize(
    "fields",
    [{"NumberOfFrames": 2}, {"PhotometricInterpretation": "PALETTE COLOR"}, {"Rows": 60_000, "Columns": 60_000}],
)
def test_a_dicom_file_of_another_kind_contributes_nothing(read: Read, fields: dict[str, object]) -> None:
    assert read(dicom(GREY, fields)) is None


def test_an_image_larger_than_any_is_never_opened(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(picture(GREY)) is not None
    monkeypatch.setattr(images, "MAX_PIXELS", 47)
    assert read(picture(GREY)) is None
    assert read(dicom(GREY)) is None
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    assert read(picture(GREY)) is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "images"
    (inside / "deep").mkdir(parents=True)
    for place in (tmp_path / "outside.png", inside / "deep" / "a.png"):
        place.write_bytes(picture(GREY))
    (inside / "out.png").symlink_to(tmp_path / "outside.png")
    (inside / "up").symlink_to(tmp_path)
    (inside / "in.png").symlink_to(inside / "deep" / "a.png")
    return inside


@pytest.mark.parametrize("path", ["deep/a.png", "deep/../deep/a.png", "in.png", "up/images/in.png"])
def test_a_path_that_ends_in_the_folder_is_read(folder: Path, path: str) -> None:
    assert read_image(folder, path) is not None


@pytest.mark.parametrize(
    "path", ["../outside.png", "out.png", "up/outside.png", "/etc/hostname", "deep/../../../x", "a\0b"]
)
def test_a_path_that_leads_out_is_refused_and_not_repeated(folder: Path, path: str) -> None:
    with pytest.raises(ConsiliumError) as raised:
        read_image(folder, path)
    assert raised.value.code == "CSL-502"
    assert path not in str(raised.value)


def test_what_is_no_file_contributes_nothing(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    for path in ("absent.png", "deep", "", ".", "pipe", "loop", "x" * 5_000):
        assert read_image(folder, path) is None


def test_a_dicom_file_of_baseline_jpeg_is_read_in_its_colours(read: Read) -> None:
    from pydicom.encaps import encapsulate

    for colour in ((200,), (200, 30, 60)):
        whole = np.full((16, 16, len(colour)), colour, dtype=np.uint8).squeeze()
        fields = {"PhotometricInterpretation": "YBR_FULL_422"} if len(colour) == 3 else {}
        file = pydicom.dcmread(io.BytesIO(dicom(whole, fields)))
        file.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.50"
        file.PixelData = encapsulate([picture(whole, "JPEG")])
        file["PixelData"].is_undefined_length = True
        raw = io.BytesIO()
        file.save_as(raw)
        found = read(raw.getvalue())
        assert found is not None
        assert np.abs(found.astype(int) - whole.reshape(16, 16, -1)).max() <= 3


def test_an_image_is_brought_near_the_size_that_a_study_reads() -> None:
    whole = np.random.default_rng(1).integers(0, 256, (70, 101, 3), dtype=np.uint8)
    found = shrunk(whole, 16)
    assert (found.shape, str(found.dtype)) == ((17, 25, 3), "uint8")
    blocks = whole[:68, :100].reshape(17, 4, 25, 4, 3).mean(axis=(1, 3))
    assert np.array_equal(found, np.rint(blocks))
    assert shrunk(whole, 36) is whole
    assert min(shrunk(whole, 1).shape[:2]) == 1
