"""Faces: action units move what they are named after, and frames survive the way through an mp4 file."""

import dataclasses
import io

import av
import numpy as np
import pytest

from mecap_jax.data.synthetic import expression, face, mp4

WHITE_ENOUGH = 215
IDENTITY = face.identity_of("woman", np.random.default_rng(11))
STILL = expression.Motion(
    amount=np.ones(1), blink=np.zeros(1), shift_x=np.zeros(1), shift_y=np.zeros(1), roll=np.zeros(1)
)


def draw(
    speech: float = 0.0, motion: expression.Motion = STILL, identity: face.Identity = IDENTITY, **units: float
) -> np.ndarray:
    all_units = {name: units.get(name, 0.0) for name in expression.ACTION_UNITS}
    return face.render(identity, all_units, motion, np.array([speech]))[0].astype(np.float64)


def white_area(image: np.ndarray, rows: slice) -> int:
    return int((image[rows].min(-1) > WHITE_ENOUGH).sum())


def centre(mask: np.ndarray) -> float:
    """Mean row of the pixels in a mask."""
    return float(np.nonzero(mask)[0].mean())


EYES, BROWS = slice(42, 62), slice(18, 46)
MOUTH = slice(74, 108), slice(38, 74)


def test_frames_have_the_promised_form():
    motion = expression.motion_of(5, np.random.default_rng(0))
    units = expression.expression_of("happy", "strong", np.random.default_rng(0))
    frames = face.render(IDENTITY, units, motion, np.zeros(5))
    assert frames.shape == (5, face.SIZE, face.SIZE, 3) and frames.dtype == np.uint8


def test_upper_lid_raiser_shows_more_of_the_eye_and_a_blink_hides_it():
    shut = expression.Motion(STILL.amount, np.ones(1), STILL.shift_x, STILL.shift_y, STILL.roll)
    assert white_area(draw(AU5=1.0), EYES) > 1.5 * white_area(draw(), EYES)
    assert white_area(draw(motion=shut), EYES) < 0.5 * white_area(draw(), EYES)


def test_brows_rise_and_fall():
    def brow_row(**units):
        dark = draw(**units).max(-1) < 70
        dark[: BROWS.start] = dark[BROWS.stop :] = False
        dark[:, :28] = dark[:, 84:] = False  # the hair at the sides
        return centre(dark)

    assert brow_row(AU1=1.0, AU2=1.0) < brow_row() - 2.0 < brow_row() + 2.0 < brow_row(AU4=1.0)


def test_lip_corners_go_up_and_down():
    def corner_row(**units):
        """Row of the corners of the mouth relative to its middle; the lips are green to tell them apart."""
        image = draw(identity=dataclasses.replace(IDENTITY, lips=(0, 255, 0)), **units)
        green = image[..., 1] > image[..., [0, 2]].max(-1) + 60
        columns = np.nonzero(green.any(0))[0]
        corners, middle = np.zeros_like(green), np.zeros_like(green)
        corners[:, [*columns[:3], *columns[-3:]]] = True
        middle[:, columns.mean().astype(int)] = True
        return centre(green & corners) - centre(green & middle)

    assert corner_row(AU12=1.0) < corner_row() - 2.0 < corner_row() + 2.0 < corner_row(AU15=1.0)


@pytest.mark.parametrize("change", [dict(AU26=1.0), dict(speech=1.0)])
def test_jaw_drop_and_speech_open_the_mouth(change):
    def dark_area(**arguments):
        return int((draw(**arguments)[MOUTH].max(-1) < 90).sum())

    assert dark_area(**change) > dark_area() + 10


def test_intensity_scales_the_face():
    def distance(intensity):
        neutral = draw()
        clips = (expression.expression_of("angry", intensity, np.random.default_rng(i)) for i in range(10))
        return np.mean([np.abs(draw(**units) - neutral).mean() for units in clips])

    assert distance("mild") < distance("moderate") < distance("strong")


def test_identities_differ():
    faces = {face.identity_of(gender, np.random.default_rng(i)) for gender in ("woman", "man") for i in range(20)}
    assert len(faces) == 40


@pytest.fixture(scope="module")
def clip() -> tuple[np.ndarray, np.ndarray, bytes]:
    rng = np.random.default_rng(0)
    units = expression.expression_of("surprised", "strong", rng)
    frames = face.render(IDENTITY, units, expression.motion_of(15, rng), rng.random(15))
    time = np.arange(int(1.5 * 22050)) / 22050
    waveform = (0.3 * np.sin(2 * np.pi * (300 + 200 * time) * time)).astype(np.float32)
    return frames, waveform, mp4.encode(frames, 10, waveform, 22050)


def test_mp4_holds_the_frames_and_the_sound(clip):
    frames, waveform, data = clip
    with av.open(io.BytesIO(data)) as container:
        assert [s.codec_context.name for s in container.streams] == ["h264", "aac"]
        decoded = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    with av.open(io.BytesIO(data)) as container:
        sound = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])[: len(waveform)]
    assert decoded.shape == frames.shape
    error = np.mean(np.square(decoded.astype(np.float64) - frames))
    assert 10 * np.log10(255**2 / error) > 28.0  # peak signal-to-noise ratio in decibels
    assert np.corrcoef(sound, waveform)[0, 1] > 0.97  # neither delayed nor distorted


def test_mp4_is_byte_identical(clip):
    frames, waveform, data = clip
    kept = []
    for i in range(20):  # other allocations in between move the encoder's buffers
        kept.append(np.ones(1000 * (i + 1)))
        assert mp4.encode(frames.copy(), 10, waveform.copy(), 22050) == data
