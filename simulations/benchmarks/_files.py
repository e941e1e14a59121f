"""Public arrays as files with an index, the way a hospital has them: PNG of PneumoniaMNIST, WAV of spoken digits.

`python -m simulations.benchmarks._files` makes what the scenarios `pneumonia` and `digits` read, below runs/. What is
there and right is kept; every file is read back by a hospital's reader and compared with the array that it came from.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.contents import file_content
from common.contents import Image, Recording, ordinal

OUT = Path("runs/bench/data")
DATA = Path("../shared/data")
FINDINGS = ("normal", "pneumonia")
RATE = 8_000
TESTED = 5
"""Recordings 0 to 4 of each digit and speaker are the test set [README of the Free Spoken Digit Dataset]."""

Line = tuple[str, ...]


def lay_out(source: Path, out: Path) -> dict[str, int]:
    """Lay out both data sets and a link to the weights; returns how many files each has.

    source  the folder with pneumoniamnist/, fsdd/ and weights/
    out     gets pneumonia/, digits/ and weights

    Raises OSError where a file cannot be read or written, ValueError where one does not hold what it was made from.
    """
    counts = {
        "pneumonia": _written(out, "pneumonia", ("path", "label", "split"), _pneumonia(source)),
        "digits": _written(out, "digits", ("path", "label", "speaker", "split"), _digits(source)),
    }
    link = out / "weights"
    if not link.is_dir():
        link.symlink_to((source / "weights").resolve(), target_is_directory=True)
    return counts


def _pneumonia(source: Path) -> Iterator[tuple[Line, bytes, Image]]:
    """Yield an index line, a file and the pixels in it. The validation images are the test set."""
    with np.load(source / "pneumoniamnist" / "pneumoniamnist_trainval.npz") as arrays:
        parts = [(side, arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part, side in _PARTS]
    for side, images, labels in parts:
        for number, (pixels, label) in enumerate(zip(images, labels.reshape(-1).tolist(), strict=True)):
            path = f"pneumonia/{side}/{number:05d}.png"
            yield (path, FINDINGS[label], side), _png(pixels), pixels[..., None]


def _digits(source: Path) -> Iterator[tuple[Line, bytes, Recording]]:
    """Yield an index line, a file and the samples in it."""
    with np.load(source / "fsdd" / "fsdd_5speakers.npz") as arrays:
        audio, offsets, digit, speaker, index = (arrays[name] for name in _COLUMNS)
    names = zip(digit.tolist(), speaker.tolist(), index.tolist(), strict=True)
    for place, (spoken, by, take) in enumerate(names):
        samples = audio[offsets[place] : offsets[place + 1]]
        line = (f"digits/{by}/{spoken}_{take}.wav", str(spoken), by, "test" if take < TESTED else "train")
        yield line, _wav(samples), Recording((samples / 2.0**15).astype(np.float32), RATE)


_PARTS = (("train", "train"), ("val", "test"))
_COLUMNS = ("audio", "offsets", "digit", "speaker", "index")


def _written(out: Path, name: str, header: Line, files: Iterator[tuple[Line, bytes, Image | Recording]]) -> int:
    """Write the files, read each back, and write the index last: where it is, all of them are there."""
    index = io.StringIO(newline="")
    lines = csv.writer(index)
    lines.writerow(header)
    count = 0
    for line, raw, held in files:
        _put(out / line[0], raw)
        _check(out, line[0], held)
        lines.writerow(line)
        count += 1
    _put(out / name / "index.csv", index.getvalue().encode())
    return count


def _put(path: Path, raw: bytes) -> None:
    """Write a file, whole or not at all, unless it is there already."""
    if path.is_file() and path.read_bytes() == raw:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(raw)
    os.replace(fresh, path)


def _check(out: Path, path: str, held: Image | Recording) -> None:
    found = file_content(out, path)
    content = None if found is None else found[0]
    if content is None or type(content) is not type(held) or ordinal(content) != ordinal(held):
        raise ValueError(f"{path} does not hold what it was made from")


def _png(pixels: NDArray[np.uint8]) -> bytes:
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _wav(samples: NDArray[np.int16]) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setparams((1, 2, RATE, 0, "NONE", ""))
        opened.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def main(argv: Sequence[str]) -> int:
    """Lay the data out; returns 1 where they are not there."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks._files")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with pneumoniamnist/, fsdd/ and weights/")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args(argv)
    if not chosen.data.is_dir():
        print(f"{chosen.data} is not here: skipped")
        return 1
    for name, count in lay_out(chosen.data, chosen.out).items():
        print(f"{name}: {count:,} files in {chosen.out / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
