"""Speech by eSpeak NG through ctypes: `synthesize` gives the same samples for the same arguments, always.

eSpeak keeps synthesis state (oscillator phase, flutter, noise) in static variables that no call resets, so a clip
would depend on the clips before it. Loading the library afresh for each utterance is the one full reset; with both
random generators seeded it costs 5 ms and makes the samples a function of the arguments alone.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import espeakng_loader
import numpy as np

SAMPLE_RATE = 22050

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback, nothing is played
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: return an error instead of ending the process
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_UTF8 = 1
_VOLUME_BELOW_CLIPPING = 60
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

_libc = ctypes.CDLL(None)
_libc.dlclose.argtypes = [ctypes.c_void_p]
_one_at_a_time = threading.Lock()  # the static variables are those of all threads


class SpeechError(RuntimeError):
    """eSpeak NG refused a voice, a parameter or a text."""


def synthesize(text: str, voice: str, rate: int, pitch: int, pitch_range: int) -> np.ndarray:
    """Returns `text` spoken by `voice` as float32 mono in [-1, 1] at `SAMPLE_RATE`.

    Args:
      text: what is said.
      voice: language and variant, such as "en-us+m3" or "cmn+f2".
      rate: words a minute, 80 to 450.
      pitch: 0 to 99, 50 is the voice's own.
      pitch_range: 0 to 99, 50 is the voice's own, 0 monotone.

    Raises:
      SpeechError: unknown voice, a parameter out of range, or nothing was spoken.
    """
    for name, value, low, high in (("rate", rate, 80, 450), ("pitch", pitch, 0, 99), ("range", pitch_range, 0, 99)):
        if not low <= value <= high:
            raise SpeechError(f"eSpeak NG {name} must lie in [{low}, {high}], got {value}")
    # eSpeak itself falls back to the plain voice where a variant does not exist.
    variant = Path(espeakng_loader.get_data_path(), "voices", "!v", voice.partition("+")[2])
    if "+" in voice and not variant.is_file():
        raise SpeechError(f"eSpeak NG has no voice {voice!r}: unknown variant {variant.name!r}")
    chunks: list[np.ndarray] = []

    @_CALLBACK
    def collect(samples, count, _events):
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    with _one_at_a_time:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        try:
            if library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _DONT_EXIT) < 0:
                raise SpeechError(f"eSpeak NG cannot read its data in {espeakng_loader.get_data_path()}")
            library.espeak_SetSynthCallback(collect)
            if library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise SpeechError(f"eSpeak NG has no voice {voice!r}")
            settings = ((_RATE, rate), (_VOLUME, _VOLUME_BELOW_CLIPPING), (_PITCH, pitch), (_RANGE, pitch_range))
            for parameter, value in settings:
                library.espeak_SetParameter(parameter, value, 0)
            # Breath noise comes from eSpeak's own generator in most voices and from libc's in the Klatt ones.
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))
            _libc.srand(1)
            data = text.encode() + b"\0"
            library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, _UTF8, None, None)
            library.espeak_Terminate()
        finally:
            _libc.dlclose(library._handle)
    samples = np.concatenate(chunks) if chunks else np.zeros(0, np.int16)
    if not samples.any():
        raise SpeechError(f"eSpeak NG spoke nothing for {text!r} with voice {voice!r}")
    return samples.astype(np.float32) / 32768.0
