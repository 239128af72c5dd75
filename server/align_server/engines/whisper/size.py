"""The size of a Whisper model, for those that read its settings and for the model itself."""

from __future__ import annotations

from dataclasses import dataclass

Head = tuple[int, int]  # layer of the decoder, and head in it


@dataclass(frozen=True, slots=True)
class Dimensions:
    """How large a model is; `frames` and `tokens` are the most that it takes, `bands` those of its spectrogram."""

    bands: int
    frames: int
    tokens: int
    vocabulary: int
    width: int
    encoder_layers: int
    encoder_heads: int
    encoder_hidden: int
    decoder_layers: int
    decoder_heads: int
    decoder_hidden: int
