"""Features are written where importers find them, equal what the encoder gives alone, and are not made twice."""

import tests.torch_reference  # noqa: F401, I001 - declares torchvision operators before transformers is imported

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from absl import app, flags
from absl.testing import flagsaver

from mecap_jax.data import media
from mecap_jax.data.importers import prepare
from mecap_jax.data.shards import ShardReader
from mecap_jax.locking import locked
from mecap_jax.experiment.frozen_encoder import LAST_FOUR, POOLED, load_encoder
from tests.data.clips import audio_file, video_file
from tests.models.test_encoders import PICTURES, SOUND, randomised, save

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import extract_features

sys.path.pop(0)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    size = {"height": 32, "width": 32}
    save(root / "hubert", randomised(SOUND["hubert"]()), transformers.Wav2Vec2FeatureExtractor())
    save(root / "siglip", randomised(PICTURES["siglip"]()), transformers.SiglipImageProcessorPil(size=size))
    return root


@pytest.fixture
def folder(tmp_path):
    """Three clips, one of which has no picture, and one that is no clip."""
    files = {"a.wav": audio_file(seconds=0.7), "b.mp4": video_file(), "c.wav": audio_file(seconds=1.6), "d.wav": b"no"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    rows = [{"file": name, "split": "train", "label": "happy"} for name in files]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def run(*arguments):
    """Exit status of the script, in this process: starting one takes longer than all of this."""
    flags.FLAGS(["extract_features.py", "--encoder=DIR"])  # what is restored behind the block must be possible
    with flagsaver.flagsaver():
        rest = flags.FLAGS(["extract_features.py", *arguments])
        try:
            return extract_features.main(rest)
        except SystemExit as error:
            return error.code


def test_sound_is_extracted_once_and_found_by_the_importer(encoders, folder, capsys):
    arguments = (f"--encoder={encoders / 'hubert'}", f"--input={folder}", "--batch=2")
    assert run(*arguments) == 1  # there is one bad clip
    said = capsys.readouterr().err
    assert "d: " in said and "3 clips made, 1 without features, such as d: " in said
    encoder = load_encoder(encoders / "hubert")
    for name in ("a", "c"):
        pieces = encoder.prepare(media.decode_audio((folder / f"{name}.wav").read_bytes()))
        (expected,) = encoder.encode(pieces, LAST_FOUR)
        found = np.load(folder / "features" / "hubert-FRA" / f"{name}.npy", allow_pickle=False)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        mean = np.load(folder / "features" / "hubert-UTT" / f"{name}.npy", allow_pickle=False)
        np.testing.assert_allclose(mean, expected.mean(axis=0), atol=1e-4)

    paths = sorted((folder / "features").rglob("*.npy"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    paths[0].unlink()  # of an interrupted run, say
    assert run(*arguments) == 1 and "1 clips made, 2 there already" in capsys.readouterr().err
    assert paths[0].exists()  # the other kind of this clip may be written again, nothing else is
    others = [path for path in paths if path.name != paths[0].name]
    assert others and all(path.stat().st_mtime_ns == before[path] for path in others)

    (folder / "d.wav").write_bytes(audio_file(seconds=0.4))
    assert run(*arguments) == 0
    prepare("folder", folder, folder / "shards", progress=False)
    reader = ShardReader(folder / "shards")
    assert [reader[i].features.keys() for i in range(4)] == [{"hubert-FRA", "hubert-UTT"}] * 4


def test_all_layers_stand_side_by_side_and_pool_over_every_window(encoders, folder):
    (folder / "d.wav").write_bytes(audio_file(seconds=12.3))
    assert run(f"--encoder={encoders / 'hubert'}", f"--input={folder}", "--layer=all", "--kind=UTT") == 0
    encoder = load_encoder(encoders / "hubert")
    pieces = encoder.prepare(media.decode_audio((folder / "d.wav").read_bytes()))
    assert len(pieces) == 2
    layers = [np.concatenate(encoder.encode(pieces, layer)).mean(axis=0) for layer in range(5)]
    found = np.load(folder / "features" / "hubert-UTT" / "d.npy", allow_pickle=False)
    np.testing.assert_allclose(found, np.concatenate(layers), atol=1e-4)


def test_features_of_another_file_or_another_setting_are_not_taken_for_these(encoders, folder, tmp_path, capsys):
    (folder / "d.wav").unlink()
    copy = tmp_path / "encoder" / "hubert"
    shutil.copytree(encoders / "hubert", copy)
    arguments = (f"--encoder={copy}", f"--input={folder}", "--kind=UTT", "--batch=3")
    run(*arguments)
    path = folder / "features" / "hubert-UTT" / "a.npy"
    sources = path.with_name("sources.jsonl")
    before = hashlib.sha256((folder / "a.wav").read_bytes()).hexdigest()
    assert json.dumps({"id": "a", "sha256": before}) in sources.read_text().splitlines()
    (folder / "a.wav").write_bytes(audio_file(seconds=0.9))
    after, kept = hashlib.sha256((folder / "a.wav").read_bytes()).hexdigest(), path.read_bytes()
    with sources.open("a") as file:
        file.write('{"id": "b", "sha')  # a crash
    capsys.readouterr()
    assert run(*arguments) == 1
    said = capsys.readouterr().err
    assert f"a: {path} was made from a file with sha256 {before}, which is {after} now; remove it" in said
    assert "0 clips made, 2 there already, 2 without features" in said and path.read_bytes() == kept
    path.unlink()
    run(*arguments)
    assert "1 clips made, 2 there already" in capsys.readouterr().err and path.read_bytes() != kept
    assert [json.loads(line)["id"] for line in sources.read_text().splitlines()].count("b") == 1

    for file, changes, words in (
        ("preprocessor_config.json", {"do_normalize": False}, "preprocessor.do_normalize: True there, False asked"),
        ("config.json", {"hidden_act": "gelu_new"}, "config.block.activation: 'gelu' there, 'gelu_new' asked"),
    ):
        before = (copy / file).read_text()
        (copy / file).write_text(json.dumps(json.loads(before) | changes))
        assert words in run(*arguments)
        (copy / file).write_text(before)


@pytest.mark.parametrize("link", ["features", "features/hubert-UTT", "features/.hubert.lock",
                                  "features/hubert-FRA/.a.npy.partial"])  # fmt: skip
def test_nothing_is_written_through_links(encoders, folder, tmp_path_factory, link):
    outside, path = tmp_path_factory.mktemp("outside"), folder / link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside / "x" if path.suffix else outside)
    arguments = (f"--encoder={encoders / 'hubert'}", f"--input={folder}")
    assert f"{path} leads out of {folder}, and nothing is written there" in run(*arguments)
    assert not list(outside.iterdir())
    if link == "features":
        assert run(*arguments, "--allow_outside") == 1 and (outside / "hubert-UTT" / "a.npy").exists()


def test_features_of_another_layer_go_elsewhere(encoders, folder, capsys):
    arguments = (f"--encoder={encoders / 'hubert'}", f"--input={folder}", "--kind=UTT")
    run(*arguments)
    kept = (folder / "features" / "hubert-UTT" / "a.npy").read_bytes()
    refused = run(*arguments, "--layer=2")
    assert "hubert-UTT holds other features (layer: 'last4' there, 2 asked); choose another --name" in refused
    assert (folder / "features" / "hubert-UTT" / "a.npy").read_bytes() == kept
    assert run(*arguments, "--layer=2", "--name=second") == 1
    assert (folder / "features" / "second-UTT" / "a.npy").read_bytes() != kept
    assert not (folder / "features" / "second-FRA").exists()
    (folder / "features" / "mine-UTT").mkdir()
    (folder / "features" / "mine-UTT" / "a.npy").write_bytes(b"x")
    assert "holds features, and not how they were made" in run(*arguments, "--name=mine")
    assert "is no name of a directory" in run(*arguments, "--name=../x")


def test_one_process_at_a_time_and_one_clip_an_id(encoders, folder, capsys):
    arguments = (f"--encoder={encoders / 'hubert'}", f"--input={folder}")
    with locked(folder / "features" / ".hubert.lock", "features"):
        assert "hubert is in use by process" in run(*arguments)
    rows = [{"file": name, "id": "x", "split": "train", "label": "sad"} for name in ("a.wav", "c.wav")]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run(*arguments) == 1
    assert "x: its id occurs twice, and the first one has the features" in capsys.readouterr().err
    assert [path.name for path in (folder / "features" / "hubert-UTT").glob("*.npy")] == ["x.npy"]


def test_pictures_of_shards_are_extracted(encoders, folder, tmp_path, capsys):
    (folder / "d.wav").unlink()
    prepare("folder", folder, folder / "shards", progress=False, max_bad_fraction=0.5)
    arguments = (f"--encoder={encoders / 'siglip'}", f"--data={folder / 'shards'}", f"--output={tmp_path / 'out'}")
    assert run(*arguments, "--fps=0", "--max_frames=3") == 1
    assert "a: it has no video" in (said := capsys.readouterr().err) and "1 clips made" in said
    encoder = load_encoder(encoders / "siglip")
    pieces = encoder.prepare(media.decode_video((folder / "b.mp4").read_bytes(), 3, 0.0, shrink=encoder.shrink).pixels)
    expected = np.concatenate(encoder.encode(pieces, POOLED))
    found = np.load(tmp_path / "out" / "siglip-FRA" / "b.npy", allow_pickle=False)
    assert found.shape == (3, 32)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    record = json.loads((tmp_path / "out" / "siglip-FRA" / "extractor.json").read_text())
    assert record["layer"] == POOLED and record["fps"] == 0 and len(record["weights_sha256"]) == 64


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--input=DIR", "--layer=9"), "hubert has no layer 9, only all, last4, 0 to 4"),
        (("--input=DIR", "--layer=first"), "hubert has no layer 'first'"),
        (("--input=absent",), "needs an input directory, got 'absent'"),
        (("--data=DIR", "--output=DIR"), "manifest.json"),
    ],
)
def test_mistakes_are_named(encoders, folder, arguments, words):
    arguments = [argument.replace("DIR", str(folder)) for argument in arguments]
    assert words in run(f"--encoder={encoders / 'hubert'}", *arguments)


@pytest.mark.parametrize("arguments, words", [((), "--input or --data"), (("--data=x",), "name an --output")])
def test_what_must_be_named(encoders, arguments, words):
    with pytest.raises(app.UsageError, match=words):
        run(f"--encoder={encoders / 'hubert'}", *arguments)
