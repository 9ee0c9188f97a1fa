"""What a run finds out before its first step: which data these are."""

import dataclasses
import json

import pytest

from mecap_jax.config import ConfigError, load
from mecap_jax.data import shards
from mecap_jax.data.importers import prepare
from mecap_jax.data.shards import ShardError, ShardReader
from mecap_jax.data.utterance import Utterance
from mecap_jax.experiment.setup import build_shards, claim, set_up, shards_directory
from mecap_jax.experiment.weights import read_run
from mecap_jax.training.logging import RunLogger
from tests.data.clips import audio_file


def recipe(*overrides):
    return load("configs/grpo.py", list(overrides))


@pytest.mark.parametrize(
    "override, message",
    [
        ("grpo.reward.custom=absent.py:f=1", "'grpo.reward.custom': .*no such file: absent.py"),
        ("encoder.path=absent", "'encoder.path': no such directory: absent"),
        ("encoder.anchors=absent", "'encoder.anchors': no such anchors file: absent"),
    ],
)
def test_rewards_and_encoders_are_loaded_before_any_data(tmp_path, override, message):
    config = recipe(override, f"data.path={tmp_path / 'absent'}", f"compilation_cache={tmp_path / 'jax'}")
    with RunLogger(None, enabled=False) as logger, pytest.raises(ConfigError, match=message):
        set_up(config, tmp_path / "run", logger)
    assert not (tmp_path / "run").exists()


def test_a_damaged_configuration_of_a_run_is_named(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"name": "\xff')
    with pytest.raises(ConfigError, match=r"config.json: Invalid JSON"):
        read_run(tmp_path)


def test_a_run_goes_on_with_other_memory_but_not_with_another_algorithm(tmp_path):
    claim(tmp_path, recipe())
    claim(tmp_path, recipe("sft.micro_clips=1", "grpo.micro_prompts=1", "mesh.fsdp=2", "evaluation.batch_clips=4"))
    with pytest.raises(ConfigError, match="sft.batch_clips: 24 there, 23 asked"):
        claim(tmp_path, recipe("sft.batch_clips=23"))


def test_a_mistyped_path_never_trains_on_something_else(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("typo", "clips"):
        config = recipe(f"data.path={tmp_path / name}")
        with pytest.raises(ShardError, match=rf"'data.path': .*{name} holds no shards.*prepare_data"):
            build_shards(config, shards_directory(config))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips"]


def test_shards_are_built_where_the_source_is_named_and_kept_where_it_is_not(tmp_path):
    path = f"data.path={tmp_path / 'shards'}"
    named = recipe(path, "data.source=synthetic", "data.synthetic.clips=20", "data.max_bad_fraction=1")
    build_shards(named, shards_directory(named))
    made = ShardReader(tmp_path / "shards").manifest
    assert made["synthetic"] is True and made["datasets"] == {"synthetic": made["records"]}
    build_shards(recipe(path), tmp_path / "shards")
    with pytest.raises(ShardError, match="another source: .*'clips': 20"):
        build_shards(dataclasses.replace(named, data=recipe(path, "data.source=synthetic").data), tmp_path / "shards")
    assert ShardReader(tmp_path / "shards").manifest == made


def test_the_manifest_says_what_the_data_are(tmp_path):
    captions = ("a sad voice",), ("她听起来很愤怒。",), ("eine traurige Stimme",), ()
    items = [
        Utterance(
            id=f"clip-{i}",
            dataset="mine" if i else "theirs",
            split="train",
            speaker="a",
            audio=audio_file(seconds=0.2),
            captions={"overall": texts} if texts else {},
            attributes={"caption_language": "de"} if i > 1 else {},
        )
        for i, texts in enumerate(captions)
    ]
    shards.write(items, tmp_path / "shards", "a test", {"importer": "folder"})
    reader = ShardReader(tmp_path / "shards")
    assert reader.manifest["synthetic"] is False and reader.manifest["datasets"] == {"mine": 3, "theirs": 1}
    assert reader.manifest["caption_languages"] == {"en": 1, "zh": 1, "de": 1}
    assert [row.caption_language for row in reader.index] == ["en", "zh", "de", ""]


def test_own_clips_are_not_synthetic(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(audio_file(seconds=0.2))
    row = {"audio": "a.wav", "caption": "难过的声音", "dataset": "EmotionTalk", "licence": "CC0-1.0", "split": "train"}
    (tmp_path / "in" / "manifest.jsonl").write_text(json.dumps(row))
    manifest = prepare("folder", tmp_path / "in", tmp_path / "out", progress=False)
    found = [manifest[key] for key in ("synthetic", "datasets", "caption_languages", "licences")]
    assert found == [False, {"EmotionTalk": 1}, {"zh": 1}, {"CC0-1.0": 1}]
