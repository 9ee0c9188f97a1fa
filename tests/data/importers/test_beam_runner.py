"""Apache Beam reads clips on its local runner: the same shards, clear errors, nothing left behind."""

import functools
import json

import pytest

from mecap_jax.config import SyntheticConfig
from mecap_jax.data.importers import ImporterError, prepare
from mecap_jax.data.importers.beam_runner import inspect
from mecap_jax.data.inspection import in_threads
from mecap_jax.data.manifest import BadClip
from mecap_jax.data.media import MAX_SECONDS
from tests.data.clips import audio_file, video_file

pytest.importorskip("apache_beam", reason="Apache Beam is the extra 'beam'")


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """More clips than one range holds; a copy, a broken file, a missing one, labels that stand for none."""
    directory = tmp_path_factory.mktemp("raw")
    rows = []
    for i in range(40):
        folder = directory / f"take{i % 2}"
        folder.mkdir(exist_ok=True)
        (folder / f"{i}.wav").write_bytes(audio_file(seconds=0.2 + 0.01 * i))
        rows.append({"file": f"take{i % 2}/{i}.wav", "label": ("happy", "sad", "unknown")[i % 3], "room": str(i)})
    for folder in ("a", "b"):  # unpacked twice
        (directory / folder).mkdir()
        (directory / folder / "clip.mp4").write_bytes(video_file())
        rows.append({"file": f"{folder}/clip.mp4", "label": "happy"})
    (directory / "take1" / "7.wav").write_bytes(b"RIFF")
    rows += [{"file": "gone.wav"}, {"file": "take0/0.wav", "valence": 7}]
    (directory / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return directory


@pytest.mark.parametrize("options", [(), ("direct_num_workers=2", "--direct_running_mode=multi_threading")])
def test_shards_are_the_same_as_without(raw, tmp_path, capsys, options):
    manifest = prepare("folder", raw, tmp_path / "here" / "shards", max_bad_fraction=0.2, captions="templates")
    here = capsys.readouterr().err
    again = prepare(
        "folder",
        raw,
        tmp_path / "beam" / "shards",
        max_bad_fraction=0.2,
        captions="templates",
        runner="DirectRunner",
        beam_options=options,
    )
    assert again == manifest and files(tmp_path / "beam" / "shards") == files(tmp_path / "here" / "shards")
    assert len(manifest["quarantined"]) == 3 and manifest["duplicates"] == [{"id": "b/clip", "of": "a/clip"}]
    assert capsys.readouterr().err.replace("/beam/", "/here/") == here and "'unknown' (13 times)" in here
    assert [path.name for path in (tmp_path / "beam").iterdir() if path.is_dir()] == ["shards"]


def test_rendered_clips_are_the_same_bytes(tmp_path):
    config = SyntheticConfig(clips=12)
    prepare("synthetic", None, tmp_path / "here", config)
    prepare("synthetic", None, tmp_path / "beam", config, runner="DirectRunner")
    assert files(tmp_path / "here") == files(tmp_path / "beam")


def explode():
    raise RuntimeError("this worker is out of luck")


def test_a_worker_that_fails_ends_the_import_with_its_reason(tmp_path):
    clips = [BadClip("x", "bad")] * 40 + [explode]
    with pytest.raises(ImporterError, match="Beam: .*this worker is out of luck"):
        list(inspect(clips, MAX_SECONDS, beside=tmp_path / "out", runner="DirectRunner"))
    assert not list(tmp_path.iterdir())


def test_results_come_in_the_order_of_the_clips(tmp_path):
    clips = [functools.partial(BadClip, str(i), "bad") for i in range(100)]
    found = list(inspect(clips, MAX_SECONDS, beside=tmp_path / "out", runner="DirectRunner"))
    assert found == list(in_threads(clips, MAX_SECONDS)) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "runner, options, reason",
    [
        ("NoSuchRunner", (), "NoSuchRunner"),
        ("DirectRunner", ("direct_num_werkers=2",), "does not know the option.*direct_num_werkers"),
        ("DirectRunner", ("direct_num_workers=many",), "direct_num_workers.*many"),
    ],
)
def test_runners_and_options_that_beam_does_not_know_are_refused(raw, tmp_path, runner, options, reason):
    with pytest.raises(ImporterError, match=reason):
        prepare("folder", raw, tmp_path / "out" / "s", max_bad_fraction=0.2, runner=runner, beam_options=options)
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
