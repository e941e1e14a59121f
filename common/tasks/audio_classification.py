"""Audio classification: a recording as the backbone reads it: a waveform, a spectrogram, or a picture of one.

Each is made from one recording and the study's constants. A backbone that was pretrained on images takes a picture of
the spectrogram, which transfers well [Palanisamy et al. 2020, arXiv 2007.11154].
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from common.backbone import Backbone
from common.contents import Recording
from common.resampling import resampled
from common.task_specs import AudioClassification
from common.tasks import unsupported
from common.tasks.shaped import ShapedTask, pixels_of, squared

_WINDOW, _HOP = 0.025, 0.010
"""Seconds of a spectrogram's window, and from one to the next."""
_PICTURE_BANDS = 64
_PICTURE_DECIBELS = 80.0
_AST_MEAN, _AST_DEVIATION = -4.2677393, 4.5689974
"""Of AudioSet, by which the spectrogram transformer was pretrained [Gong et al. 2021, arXiv 2104.01778, section 2]."""
_QUIET = 1e-10


class AudioClassificationTask(ShapedTask):
    """Assign one of the study's labels to each recording."""

    spec: AudioClassification

    def __init__(self, spec: AudioClassification, backbone: Backbone, stream: str = "") -> None:
        del stream
        super().__init__(backbone)
        if self.anatomy.reads == "tokens":
            raise unsupported(f"{backbone.manifest.name} reads tokens, not sound")
        self.spec = spec
        self.choose_among(spec)
        if self.anatomy.reads == "pixels":
            self.check_size()
        self._samples = max(1, round(spec.rate * spec.seconds))
        config = backbone.model.config
        self._frames = int(getattr(config, "max_length", 0) or 0)
        self._bands = int(getattr(config, "num_mel_bins", 0) or 0)

    def reads(self, content: object, label: str) -> bool:
        """See :meth:`Task.reads`."""
        if not (isinstance(content, Recording) and len(content.samples) and content.rate > 0):
            return False
        return bool(np.isfinite(content.samples).all()) and self.spec.accepts(label)

    def shaped(self, content: object) -> NDArray[np.generic]:
        """See :meth:`ShapedTask.shaped`."""
        assert isinstance(content, Recording), "read before"
        heard = resampled(content, self.spec.rate).samples[: self._samples].astype(np.float64)
        if self.anatomy.reads == "waveform":
            heard = (heard - heard.mean()) / max(float(heard.std()), 1e-5)
        samples = np.zeros(self._samples)
        samples[: len(heard)] = heard
        if self.anatomy.reads == "waveform":
            return samples.astype(np.float32)
        if self.anatomy.reads == "spectrogram":
            return self._spectrogram(samples)
        return self._picture(samples)

    def batched(self, kept: Tensor) -> Tensor:
        """See :meth:`ShapedTask.batched`."""
        return pixels_of(kept, (0.5,) * 3, (0.5,) * 3) if kept.dtype == torch.uint8 else kept

    def invented_content(self, dice: np.random.Generator) -> object:
        """See :meth:`ShapedTask.invented_content`: noise of differing loudness."""
        loudness = dice.uniform(0.05, 0.5)
        return Recording((loudness * dice.uniform(-1, 1, size=self._samples)).astype(np.float32), self.spec.rate)

    def _spectrogram(self, samples: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return (frames, bands) as the spectrogram transformer reads them, cut or filled with quiet."""
        found = np.log(self._mel(samples, self._bands).T + _QUIET)
        filled = np.full((self._frames, self._bands), np.log(_QUIET))
        filled[: len(found)] = found[: self._frames]
        return ((filled - _AST_MEAN) / (2.0 * _AST_DEVIATION)).astype(np.float32)

    def _picture(self, samples: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Return a grey picture of 80 decibels below the loudest place, high bands on top."""
        power = 10.0 * np.log10(self._mel(samples, _PICTURE_BANDS)[::-1] + _QUIET)
        brightness = 1.0 + (power - power.max()) / _PICTURE_DECIBELS
        grey = np.rint(255.0 * brightness.clip(0.0, 1.0)).astype(np.uint8)
        return squared(grey[..., None], self.spec.size)

    def _mel(self, samples: NDArray[np.float64], bands: int) -> NDArray[np.float64]:
        """Return (bands, frames): the power in each band of the mel scale."""
        window, hop = max(2, round(_WINDOW * self.spec.rate)), max(1, round(_HOP * self.spec.rate))
        length = 1 << (window - 1).bit_length()
        filters = mel_filter_bank(
            num_frequency_bins=length // 2 + 1,
            num_mel_filters=bands,
            min_frequency=20.0,
            max_frequency=self.spec.rate / 2.0,
            sampling_rate=self.spec.rate,
        )
        found = spectrogram(
            samples, window_function(window, "hann"), window, hop, fft_length=length, power=2.0, mel_filters=filters
        )
        return np.asarray(found, dtype=np.float64)
