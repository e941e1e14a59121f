"""Recordings by path: samples come back, and a broken or hostile file harms nobody else's."""

from __future__ import annotations

import io
import os
import struct
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client import audio
from client.audio import read_recording, recording_of
from common.contents import Recording
from common.errors import ConsiliumError

SOUND = np.round(np.sin(np.arange(400) / 7) * 0.7 * 2**31) / 2**31
Read = Callable[[bytes], Recording | None]


def stored(samples: np.ndarray, width: int) -> bytes:
    """Return samples in [-1, 1), (n,) or (n, channels), as little-endian integers of some bytes each."""
    flat = samples.reshape(-1)
    if width == 1:
        return bytes(np.floor(flat * 128 + 128).astype(np.uint8))
    wide = np.floor(flat * 2.0 ** (8 * width - 1)).astype("<i8").tobytes()
    return b"".join(wide[at : at + width] for at in range(0, len(wide), 8))


def wav(samples: np.ndarray = SOUND, width: int = 2, rate: int = 8_000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setparams((1 if samples.ndim == 1 else samples.shape[1], width, rate, 0, "NONE", ""))
        opened.writeframes(stored(samples, width))
    return file.getvalue()


def extensible(raw: bytes, subformat: str = "0100000000001000800000aa00389b71") -> bytes:
    """Return a plain file in the extensible format: the same samples under a longer header."""
    body = raw[20:36] + struct.pack("<HHL", 22, 16, 4) + bytes.fromhex(subformat)
    made = b"WAVEfmt " + struct.pack("<L", 40) + b"\xfe\xff" + body[2:] + raw[36:]
    return b"RIFF" + struct.pack("<L", len(made)) + made


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def through(raw: bytes) -> Recording | None:
        (tmp_path / "sound.wav").write_bytes(raw)
        return read_recording(tmp_path, "sound.wav")

    return through


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_integer_samples_of_any_width_are_read_and_channels_become_their_mean(
    read: Read, width: int, channels: int
) -> None:
    whole = np.stack([SOUND * (1 - channel / 10) for channel in range(channels)], axis=1)
    found = read(wav(whole, width, 11_025))
    assert found is not None
    assert (found.rate, str(found.samples.dtype), found.samples.shape) == (11_025, "float32", SOUND.shape)
    assert np.abs(found.samples - whole.mean(axis=1)).max() <= 2.0 ** (1 - 8 * width) + 1e-6


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_the_loudest_and_silence_are_read_as_such(read: Read, width: int) -> None:
    found = read(wav(np.array([-1.0, 0.0, 1.0 - 2.0 ** (1 - 8 * width)]), width))
    assert found is not None
    assert found.samples.tolist() == pytest.approx([-1.0, 0.0, 1.0], abs=2.0 ** (1 - 8 * width))
    assert np.abs(found.samples).max() <= 1.0


def test_the_extensible_format_is_read_where_it_holds_integers(read: Read) -> None:
    plain, found = read(wav()), read(extensible(wav()))
    assert plain is not None
    assert found is not None
    assert np.array_equal(found.samples, plain.samples)
    assert read(extensible(wav(), "0300000000001000800000aa00389b71")) is None


def test_no_more_than_was_asked_for_is_kept() -> None:
    found, whole = recording_of(wav(), 0.01), recording_of(wav())
    assert found is not None
    assert whole is not None
    assert np.array_equal(found.samples, whole.samples[:80])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no sound at all",
        b"RIFF\x24\x00\x00\x00WAVE",
        b"RIFF" + bytes(60),
        b"OggS" + bytes(60),
        wav(np.zeros(0)),
        wav(rate=999),
        wav(rate=400_001),
        wav()[:20] + b"\x03\x00" + wav()[22:],
        wav()[:20] + b"\x07\x00" + wav()[22:],
        wav()[:22] + b"\x00\x00" + wav()[24:],
        wav()[:34] + b"\x00\x00" + wav()[36:],
        wav()[:34] + b"\xff\xff" + wav()[36:],
    ],
)
def test_what_is_no_recording_contributes_nothing(read: Read, raw: bytes) -> None:
    assert read(raw) is None


def test_a_damaged_recording_is_never_half_a_recording(read: Read) -> None:
    whole = wav()
    assert read(whole) is not None
    assert all(read(whole[:end]) is None for end in range(0, len(whole), 7))


def test_bytes_turned_anywhere_in_the_header_stop_nobody(read: Read) -> None:
    whole = wav()
    for place in range(44):
        for value in (0, 1, 0x7F, 0x80, 0xFF):
            found = read(whole[:place] + bytes([value]) + whole[place + 1 :])
            assert found is None or (len(found.samples) <= len(SOUND) * 2 and np.isfinite(found.samples).all())


def test_a_file_that_claims_hours_of_sound_is_not_read_and_fills_no_memory(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = wav()[:40] + b"\xff\xff\xff\xff" + wav()[44:]
    assert read(endless) is None
    monkeypatch.setattr(audio, "MAX_SECONDS", 0.04)
    assert read(wav()) is None
    monkeypatch.setattr(audio, "MAX_SECONDS", 3600)
    monkeypatch.setattr(audio, "MAX_BYTES", 10)
    assert read(wav()) is None


@pytest.mark.parametrize("path", ["../outside.wav", "out.wav", "/etc/hostname", "deep/../../x", "a\0b"])
def test_a_path_that_leads_out_is_refused_and_not_repeated(tmp_path: Path, path: str) -> None:
    inside = tmp_path / "sounds"
    inside.mkdir()
    (tmp_path / "outside.wav").write_bytes(wav())
    (inside / "out.wav").symlink_to(tmp_path / "outside.wav")
    with pytest.raises(ConsiliumError) as raised:
        read_recording(inside, path)
    assert raised.value.code == "CSL-502"
    assert path not in str(raised.value)


def test_what_is_no_file_contributes_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "deep").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for path in ("absent.wav", "deep", "", ".", "pipe", "loop", "x" * 5_000):
        assert read_recording(tmp_path, path) is None
