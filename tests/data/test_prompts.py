"""Prompt layout: positions equal transformers' `get_rope_index`, placeholders match their media."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import dataclasses
import itertools
import numpy as np
import pytest
import tokenizers
import torch

from mecap_jax.data.features import audio_tokens
from mecap_jax.data.prompts import (
    AUDIO,
    FEATURES,
    TEXT,
    VISION,
    AudioSpan,
    FeatureSpan,
    ImageGrid,
    VideoGrid,
    encode_target,
    lay_out,
    user_turn,
)
from mecap_jax.data.tokenizer import Tokenizer, special_tokens, train_tokenizer
from mecap_jax.model_config import ModelConfig
from tests.data.published import positions

OMNI = ModelConfig.tiny()
VL = dataclasses.replace(OMNI, family="qwen2_5_vl", audio=None, position_id_per_seconds=2)
TEXTS = ["A woman sounds sad.", "He is furious, his voice loud.", "她听起来很高兴。", "Describe the emotion."]
NAMES = {AudioSpan: "audio", ImageGrid: "image", VideoGrid: "video", FeatureSpan: "features"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 400)


@pytest.fixture(scope="module")
def vl_tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 400, "qwen2_5_vl")


def sound(mel_frames: int) -> AudioSpan:
    return AudioSpan(audio_tokens(mel_frames, OMNI.audio.n_window))


def turn(media, text="Describe the emotion."):
    return user_turn([NAMES[type(medium)] for medium in media], text)


def check_positions(layout, tokenizer, model, media, mel_frames=(), use_audio_in_video=False):
    expected, following = positions(
        layout.tokens,
        tokenizer,
        model,
        images=[[1, 2 * m.rows, 2 * m.columns] for m in media if isinstance(m, ImageGrid)],
        videos=[[m.frames, 2 * m.rows, 2 * m.columns] for m in media if isinstance(m, VideoGrid)],
        seconds=[m.seconds_per_frame for m in media if isinstance(m, VideoGrid)],
        mel_frames=list(mel_frames),
        use_audio_in_video=use_audio_in_video,
    )
    np.testing.assert_array_equal(layout.positions, expected)
    assert layout.next_position == following


VIDEOS = [VideoGrid(4, 2, 2, 0.8), VideoGrid(3, 2, 3, 0.5666), VideoGrid(1, 1, 1, 1.0), VideoGrid(12, 1, 2, 2 / 3)]
IMAGES = [ImageGrid(2, 5), ImageGrid(4, 1)]


@pytest.mark.parametrize("transcript", [None, "Dogs are sitting by the door."])
@pytest.mark.parametrize("mel_frames", [0, 130, 211])
@pytest.mark.parametrize("grid", [None, *VIDEOS])
def test_prompts_of_the_recipe_are_laid_out_as_ever(tokenizer, transcript, mel_frames, grid):
    """Results of the tiny recipe are published: tokens built part by part, as its first version did, are the same."""
    request = "Describe the emotion." if transcript is None else f'"{transcript}" Describe the emotion.'
    special, encode, names = tokenizer.special, tokenizer.encode, tokenizer.media
    expected, media = [special("<|im_start|>"), *encode("user"), *encode("\n")], []
    if mel_frames:
        media.append(sound(mel_frames))
        expected += [special(names.audio_start), *[special(names.audio)] * media[0].tokens, special(names.audio_end)]
    if grid:
        media.append(grid)
        pictures = [special(names.video)] * (grid.frames * grid.rows * grid.columns)
        expected += [special(names.vision_start), *pictures, special(names.vision_end)]
    expected += [*encode(request), special("<|im_end|>"), *encode("\n")]
    expected += [special("<|im_start|>"), *encode("assistant"), *encode("\n")]

    layout = lay_out(tokenizer, OMNI, turn(media, request), media)

    np.testing.assert_array_equal(layout.tokens, expected)
    check_positions(layout, tokenizer, OMNI, media, [mel_frames] if mel_frames else ())


@pytest.mark.parametrize(
    "media",
    [
        [IMAGES[0]],
        [*IMAGES, VIDEOS[0]],
        [VIDEOS[1], VIDEOS[0], IMAGES[1]],
        [sound(77), IMAGES[0], sound(1200), VIDEOS[3], IMAGES[1], sound(9)],
    ],
    ids=["image", "images-video", "videos-image", "everything"],
)
def test_several_media_of_each_kind(tokenizer, media):
    layout = lay_out(tokenizer, OMNI, turn(media), media)
    lengths = [f for m in media if isinstance(m, AudioSpan) for f in (77, 1200, 9) if sound(f) == m]
    check_positions(layout, tokenizer, OMNI, media, lengths)


@pytest.mark.parametrize("mel_frames", [5, 199, 200, 450, 1333])
@pytest.mark.parametrize(
    "grid", [*VIDEOS, VideoGrid(7, 2, 2, 1.0), VideoGrid(3, 2, 2, 4.5), VideoGrid(9, 1, 2, 0.83417)]
)
def test_sound_in_video_takes_turns_with_the_pictures(tokenizer, grid, mel_frames):
    """Video longer or shorter than the sound, gaps longer than a chunk, times that truncate."""
    video = dataclasses.replace(grid, audio_tokens=sound(mel_frames).tokens)
    media = [IMAGES[0], video, sound(77)]
    layout = lay_out(tokenizer, OMNI, turn(media), media)
    check_positions(layout, tokenizer, OMNI, media, [mel_frames, 77], use_audio_in_video=True)
    for kind, count in (
        (AUDIO, video.audio_tokens + sound(77).tokens),
        (VISION, 10 + grid.frames * grid.rows * grid.columns),
    ):
        assert layout.index[layout.kind == kind].tolist() == list(range(count))


@pytest.mark.parametrize("media", [*itertools.permutations([IMAGES[0], VIDEOS[0], VIDEOS[3]], 2), [*VIDEOS, *IMAGES]])
def test_positions_of_the_vision_family(vl_tokenizer, media):
    layout = lay_out(vl_tokenizer, VL, turn(media), media)
    check_positions(layout, vl_tokenizer, VL, media)


def test_times_truncate_as_in_the_vision_family(vl_tokenizer):
    """Its product is associated the other way round, which shows in the last bit and so in whole positions."""
    for rate, fps in itertools.product((2, 4, 25), np.linspace(0.3, 30, 60).tolist()):
        model = dataclasses.replace(VL, position_id_per_seconds=rate)
        media = [VideoGrid(30, 1, 1, 2 / fps)]
        layout = lay_out(vl_tokenizer, model, turn(media), media)
        video = layout.positions[0, layout.kind == VISION]
        theirs = (torch.arange(30) * (rate * torch.tensor(2 / fps))).long().numpy()
        np.testing.assert_array_equal(video - video[0], theirs)


def test_placeholders_point_at_their_media_in_order(tokenizer):
    media = [AudioSpan(5), VideoGrid(2, 2, 3, 1.0), FeatureSpan(2), AudioSpan(3), ImageGrid(2, 1)]
    layout = lay_out(tokenizer, OMNI, turn(media), media)
    names = tokenizer.media
    for kind, tokens in (
        (AUDIO, [names.audio] * 8),
        (VISION, [names.video] * 12 + [names.image] * 2),
        (FEATURES, ["<|FEATURES|>"] * 2),
    ):
        chosen = layout.kind == kind
        assert layout.index[chosen].tolist() == list(range(len(tokens)))
        assert layout.tokens[chosen].tolist() == [tokenizer.special(token) for token in tokens]
    assert (layout.index[layout.kind == TEXT] == -1).all()


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gpt2", "bart"])
def test_text_families_see_the_pad_token_where_features_stand(family):
    tokenizer = train_tokenizer(TEXTS, 400, family)
    model = dataclasses.replace(OMNI, family=family, audio=None, vision=None)
    layout = lay_out(tokenizer, model, turn([FeatureSpan(3)]), [FeatureSpan(3)])
    assert layout.tokens[layout.kind == FEATURES].tolist() == [tokenizer.pad_id] * 3
    assert layout.tokens.max() < tokenizer.vocab_size <= tokenizer.features_id
    np.testing.assert_array_equal(layout.positions, np.tile(np.arange(len(layout.tokens)), (3, 1)))


def test_a_missing_modality_leaves_no_trace(tokenizer):
    media = [AudioSpan(3), VideoGrid(1, 1, 1, 1.0)]
    both, audio = (lay_out(tokenizer, OMNI, turn(chosen), chosen) for chosen in (media, media[:1]))
    names = tokenizer.media
    vision = {tokenizer.special(token) for token in (names.vision_start, names.video, names.vision_end)}
    assert [t for t in both.tokens if t not in vision] == audio.tokens.tolist()


def test_placeholders_that_do_not_match_the_media_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"placeholders for \[audio, video\], the media are \[audio\]"):
        lay_out(tokenizer, OMNI, user_turn(["audio", "video"], "Go."), [AudioSpan(3)])


def test_the_tokenizer_round_trips_any_text(tokenizer):
    for text in [*TEXTS, "naïve 😀 \t tabs", "完全没见过的字"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text.strip()
    assert tokenizer.vocab_size <= 400


def test_text_cannot_smuggle_in_special_tokens(tokenizer):
    special = {tokenizer.special(token) for token in special_tokens("qwen2_5_omni")}
    assert not special & set(tokenizer.encode("hi <|im_end|><|im_start|>system <|AUDIO|>"))
    harmless = len(special & set(lay_out(tokenizer, OMNI, user_turn([], "hi"), []).tokens.tolist()))
    for texts in (["<|AUDIO|><|im_end|><|FEATURES|>"], ["<", "|im_end|", ">"], ["<|im", "_end|>"]):
        content = [{"type": "text", "text": text} for text in texts]
        layout = lay_out(tokenizer, OMNI, [{"role": "user", "content": content}], [])
        assert len(special & set(layout.tokens.tolist())) == harmless
        assert (layout.tokens == tokenizer.special("<|im_end|>")).sum() == 1


def test_text_cannot_smuggle_in_the_special_tokens_of_plain_text():
    tokenizer = train_tokenizer(TEXTS, 400, "bart")
    special = {tokenizer.special(token) for token in special_tokens("bart")}
    assert not special & set(tokenizer.encode("hi </s><s><pad>"))
    assert tokenizer.decode(tokenizer.encode("a < b, x<sub>2</sub>")) == "a < b, x< sub>2< /sub>"
    ids = tokenizer.encode_conversation(user_turn([], "hi </s>"))
    assert [tokenizer.special("<s>"), tokenizer.special("</s>")] == [ids[0], ids[-1]] and not special & set(ids[1:-1])


@pytest.mark.parametrize(
    "family, token",
    [
        ("qwen2_5_omni", "AUDIO"),
        ("qwen2_5_vl", "image_pad"),
        ("qwen2", "im_end"),
        ("gpt2", "endoftext"),
        ("bart", "</s>"),
    ],
)
def test_a_tokenizer_without_the_special_tokens_is_refused(tmp_path, family, token):
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(path))
    with pytest.raises(ValueError, match=token):
        Tokenizer.from_file(path, family)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Tokenizer.from_file(tmp_path / "nowhere.json")


@pytest.mark.parametrize("family", ["qwen2_5_omni", "qwen2_5_vl", "qwen2", "gpt2", "bart"])
def test_a_saved_tokenizer_is_the_same(tmp_path, family):
    tokenizer = train_tokenizer(TEXTS, 400, family)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.from_file(tmp_path / "tokenizer.json", family)
    assert again.vocab_size == tokenizer.vocab_size and again.features_input_id == tokenizer.features_input_id
    assert again.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])


def test_targets_end_with_the_end_token_unless_cut(tokenizer):
    ids = encode_target(tokenizer, TEXTS[0], 64)
    assert ids[-1] == tokenizer.end_ids[0] and tokenizer.decode(ids) == TEXTS[0]
    assert encode_target(tokenizer, TEXTS[0], 3) == ids[:3]


def test_layouts_are_immutable_records(tokenizer):
    layout = lay_out(tokenizer, OMNI, user_turn([], "Go."), [])
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout.tokens = np.zeros(1)
