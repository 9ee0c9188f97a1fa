"""What a run finds out before its first step: which data these are, and what it makes of them."""

import dataclasses
import json

import pytest

from mecap_jax.config import ConfigError, from_json, load
from mecap_jax.data import shards
from mecap_jax.data.importers import prepare
from mecap_jax.data.manifest import write_manifest
from mecap_jax.data.pipeline import DataError
from mecap_jax.data.shards import ShardError, ShardReader
from mecap_jax.data.training_facts import read_facts
from mecap_jax.data.utterance import Utterance
from mecap_jax.experiment import setup
from mecap_jax.experiment.setup import USER_ERRORS, build_shards, reopen, set_up, shards_directory
from mecap_jax.experiment.weights import read_run
from mecap_jax.experiment.workdir import CACHE, is_claimed
from mecap_jax.json_files import read_json_object
from mecap_jax.models.checkpoints.table import CheckpointError
from mecap_jax.training.logging import RunLogger
from tests.data.clips import SHARED, audio_file, needs_shared_data


def recipe(*overrides):
    return load("configs/grpo.py", list(overrides))


@pytest.mark.parametrize(
    "override, message",
    [
        ("grpo.reward.terms=absent.py:f=1", "'grpo.reward.terms': .*no such file: absent.py"),
        ("grpo.reward.terms=joy=1", "'grpo.reward.terms': the task has no term 'joy'; it has emotion, semantic"),
        (
            "grpo.reward.terms.emotion.options={'form': 'centred', 'size': 1}",
            "'emotion' has no option 'size'; it has form",
        ),
        ("encoder.path=absent", "'encoder.path': no such directory: absent"),
        ("encoder.anchors=absent", "'encoder.anchors': no such anchors file: absent"),
    ],
)
def test_rewards_and_encoders_are_loaded_before_any_data(tmp_path, override, message):
    config = recipe(override, f"data.path={tmp_path / 'absent'}", f"compilation_cache={tmp_path / 'jax'}")
    with RunLogger(None, enabled=False) as logger, pytest.raises(ConfigError, match=message):
        set_up(config, tmp_path / "run", logger)
    assert not (tmp_path / "run").exists()


def test_weights_and_classifiers_that_cannot_be_read_name_their_key(tmp_path, monkeypatch):
    data = (f"data.path={tmp_path / 'absent'}", f"compilation_cache={tmp_path / 'jax'}")
    recognition = load("configs/erv.py", [*data, "grpo.reward.terms.explanation.options={'verifier': './absent'}"])
    with RunLogger(None, enabled=False) as logger:
        with pytest.raises(ConfigError, match="'grpo.reward.terms': 'explanation': no such directory: absent"):
            set_up(recognition, tmp_path / "run", logger)

        def damaged(path):
            raise CheckpointError("model.safetensors: tensors hold NaN or infinity: pooler.dense.bias")

        monkeypatch.setattr(setup, "load_sentence_encoder", damaged)
        with pytest.raises(ConfigError, match="'encoder.path': model.safetensors: tensors hold NaN"):
            set_up(recipe(*data), tmp_path / "run", logger)


def test_a_damaged_configuration_of_a_run_is_named(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"name": "\xff')
    with pytest.raises(ConfigError, match=r"config.json: Invalid JSON"):
        read_run(tmp_path)


def test_a_mistyped_path_never_trains_on_something_else(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("typo", "clips"):
        config = recipe(f"data.path={tmp_path / name}")
        with pytest.raises(ShardError, match=rf"'data.path': .*{name} holds no shards.*prepare_data"):
            build_shards(config, shards_directory(config, CACHE))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips"]


def test_shards_are_built_where_the_source_is_named_and_kept_where_it_is_not(tmp_path):
    path = f"data.path={tmp_path / 'shards'}"
    named = recipe(path, "data.source=synthetic", "data.synthetic.clips=20", "data.max_bad_fraction=1")
    build_shards(named, shards_directory(named, CACHE))
    made = ShardReader(tmp_path / "shards").manifest
    assert made["synthetic"] is True and made["datasets"] == {"synthetic": made["records"]}
    build_shards(recipe(path), tmp_path / "shards")
    with pytest.raises(ShardError, match=r"another source: synthetic\.clips: 20 there, 2000 asked"):
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
            language=("de", "zh", "de", "")[i],
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
    assert reader.manifest["speech_languages"] == {"de": 2, "zh": 1}  # one is not known
    assert [row.caption_language for row in reader.index] == ["en", "zh", "de", ""]


def test_own_clips_are_not_synthetic(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(audio_file(seconds=0.2))
    row = {"audio": "a.wav", "caption": "难过的声音", "dataset": "EmotionTalk", "licence": "CC0-1.0", "split": "train"}
    (tmp_path / "in" / "manifest.jsonl").write_text(json.dumps(row))
    manifest = prepare("folder", tmp_path / "in", tmp_path / "out", progress=False)
    found = [manifest[key] for key in ("synthetic", "datasets", "caption_languages", "licences")]
    assert found == [False, {"EmotionTalk": 1}, {"zh": 1}, {"CC0-1.0": 1}]


# --- the data decide ----------------------------------------------------------------------------------------------

SMALL = ("model.decoder.vocab_size=512", "sft.batch_clips=8", "grpo.prompts=8", "grpo.micro_prompts=0")


class Said(RunLogger):
    """A logger without files, and what it said."""

    def __init__(self):
        super().__init__(None)
        self.lines = []

    def say(self, message):
        self.lines.append(message)


def write_voices(directory, lengths, silent=0, **changes):
    """Shards of clips of sound alone, of these lengths in seconds; the first `silent` for training have no captions."""
    sounds = {seconds: audio_file(seconds=seconds) for seconds in set(lengths)}
    items = [
        Utterance(
            id=f"clip-{i:02}",
            dataset="mine",
            split="validation" if i % 5 == 4 else "train",
            speaker=f"speaker-{i % 5}",
            audio=sounds[seconds],
            labels={"multimodal": ("happy", "sad", "angry")[i % 3]},
            captions={"overall": (f"a {('happy', 'sad', 'angry')[i % 3]} voice, number {i}",)}
            if i >= silent or i % 5 == 4
            else {},
            **changes,
        )
        for i, seconds in enumerate(lengths)
    ]
    shards.write(items, directory, "a test", {"importer": "test"})
    return f"data.path={directory}"


def test_own_voices_need_no_settings(tmp_path):
    path = write_voices(tmp_path / "shards", [3.0] * 30 + [7.0] * 10)
    config, workdir, logger = recipe(path, *SMALL), tmp_path / "run", Said()
    workdir.mkdir()
    bench = set_up(config, workdir, logger)
    data = bench.config.data
    assert (data.modalities, data.max_seconds) == (("audio",), 7.0)
    assert [bucket.audio_chunks for bucket in data.buckets] == [3, 6] and not any(b.frames for b in data.buckets)
    said = "\n".join(logger.lines)
    for line in ("no clip has video: the model sees audio", "the report is on the 8 validation clips", "are padding"):
        assert line in said
    # What the run is, for everything that opens it later; the configuration as it was asked for.
    facts = read_facts(workdir)
    assert (facts.clips, facts.transcribed, facts.longest_seconds) == (32, 0.0, 7.0)
    assert facts.caption_languages == {"en": 32} and facts.buckets == data.buckets
    assert json.loads((workdir / "config.json").read_text())["data"]["buckets"] == []
    again = read_run(workdir).data
    assert (again.modalities, again.max_seconds, again.buckets) == (("audio",), 7.0, ())
    assert not again.include_transcript  # nobody said what is said, so a caption without it is nothing new
    assert reopen(workdir, None, logger).config.data.buckets == data.buckets
    # Other data: seen like the run's own, without transcripts and in its shapes.
    write_voices(tmp_path / "others", [2.0] * 5 + [11.0] * 5, transcript="It is late. " * 60)
    other = reopen(workdir, tmp_path / "others", logger)
    assert other.config.data.buckets == data.buckets and not other.dataset.quarantined
    assert "5 of 10 clips last longer than 7 s" in logger.lines[-1]


def test_what_fails_before_the_first_step_claims_nothing(tmp_path):
    path = write_voices(tmp_path / "shards", [1.0] * 20)
    workdir = tmp_path / "run"
    workdir.mkdir()
    with pytest.raises(DataError, match=r"(?s)cannot be trained on:.*'sft.batch_clips': 64 clips a step.*only 16"):
        set_up(recipe(path, *SMALL, "sft.batch_clips=64"), workdir, Said())
    assert not (workdir / "config.json").exists()
    set_up(recipe(path, *SMALL), workdir, Said())
    # Without a step there is nothing that other settings could spoil; what was prepared is prepared anew.
    second = set_up(recipe(path, *SMALL, "seed=1", "data.instruction=Say it."), workdir, Said())
    assert not is_claimed(workdir) and read_run(workdir).seed == 1
    (workdir / "checkpoints" / "sft" / "3").mkdir(parents=True)
    with pytest.raises(ConfigError, match="seed: 1 there, 0 asked"):
        set_up(recipe(path, *SMALL, "data.instruction=Say it."), workdir, Said())
    processor = (workdir / "processor" / "tokenizer.json").stat().st_mtime_ns
    resumed = set_up(read_run_as_asked(workdir), workdir, Said())
    assert resumed.config.data.buckets == second.config.data.buckets
    assert (workdir / "processor" / "tokenizer.json").stat().st_mtime_ns == processor


def read_run_as_asked(workdir):
    """The configuration that the same command line would give."""
    return from_json((workdir / "config.json").read_text())


def test_a_corpus_without_labels_has_anchors_from_templates(tmp_path):
    directory = tmp_path / "shards"
    items = [
        Utterance(f"clip-{i}", "mine", "train" if i < 16 else "test", f"s{i}", audio=audio_file(seconds=0.5),
                  captions={"overall": (f"a voice like number {i}",)})
        for i in range(20)
    ]  # fmt: skip
    shards.write(items, directory, "a test", {"importer": "test"})
    (tmp_path / "run").mkdir()
    bench = set_up(recipe(f"data.path={directory}", *SMALL), tmp_path / "run", logger := Said())
    assert bench.anchors.kind == "templates" and any("no emotion labels" in line for line in logger.lines)


def row(*changes, stage="sft"):
    """Overrides that train a row of comparison with these changes."""
    return f"rows=({ {'name': 'other', 'stage': stage, 'changes': changes} },)", "evaluation.rows=other"


BART = load("configs/grpo.py").rows[-1].changes
GPT2 = load("configs/grpo.py").rows[-2].changes


def learned(count):
    """Changes that put a decoder with so many learned positions in place of the run's."""
    return *GPT2, f"model.decoder.max_position_embeddings={count}"


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["grpo.reward.terms.emotion.options={'form': 'round'}"], "'grpo.reward.terms': 'emotion': .*round"),
        (["grpo.reward.terms=a.py:f,b.py:f"], "'grpo.reward.terms': .*different names"),
        (row("grpo.reward.terms.emotion.options={'form': 'round'}", stage="grpo"), "row 'other': .*'emotion': .*round"),
        (row("sft.batch_clips=33"), "row 'other': 'sft.batch_clips': 33 clips a step, but only \\d+ train"),
        (row("grpo.prompts=33", stage="grpo"), "row 'other': 'grpo.prompts': 33 clips a step, but only \\d+ train"),
        (row("data.target=style"), "row 'other': .*has no 'style' caption"),
        (row("data.modalities=()"), "row 'other': .*needs a transcript"),
        (["sft.exercises=0.5"], "'sft.exercises': 0.5, but the task .* has no exercise on any training clip"),
        (row("sft.exercises=0.5"), "row 'other': config key 'sft.exercises'"),
        (["grpo.reward.terms=c.py:Asks", *BART], "'grpo.reward.terms': 'Asks' asks the policy .* whole ones only"),
        # Prompts have 41 tokens, and Emo-GRPO's answers up to 40: SFT's count as well.
        (row(*learned(50)), "row 'other': .*prompt of 41 tokens, .*up to 40 .*room for 10: .*max_position_.* is 50"),
        (row(*learned(100), "sft.max_target_tokens=80"), "row 'other': .*up to 80 .*room for 20: .* is 100"),
        ([*learned(100), "sft.max_target_tokens=80"], "40 of 40 clips .*prompt of 41 tokens, .*room for 20: .* is 100"),
        (
            [*learned(120), "data.buckets=({'prompt_tokens': 90, 'audio_chunks': 8},)"],
            "'data.buckets': the largest holds a prompt of 90 tokens, .*up to 40 there is room for 80: .* is 120",
        ),
        (
            ["grpo.reward.terms=c.py:Shows", *learned(90)],
            "'grpo.reward.terms': 'Shows' asks .*may take 76 tokens: a prompt of 44 tokens, .*room for 14: .* is 90",
        ),
    ],
)
def test_what_stages_and_rows_ask_for_is_tried_before_anything_is_trained(tmp_path, monkeypatch, overrides, message):
    config = recipe(write_voices(tmp_path / "shards", [1.0] * 40), *SMALL, *overrides)
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.py").write_text("def f(samples):\n    return [0.0] * len(samples)\n")
    (tmp_path / "c.py").write_text(
        "class Asks:\n    needs_policy, asks, reply_tokens = True, (False,), 4\n"
        "    def questions(self, sample):\n        return [None]\n"
        "    def __call__(self, samples):\n        return [0.0] * len(samples)\n"
        "class Shows(Asks):\n    asks = (True,)\n"
    )
    (tmp_path / "run").mkdir()
    with pytest.raises(USER_ERRORS, match=f"(?s){message}"):
        set_up(config, tmp_path / "run", Said())
    assert not (tmp_path / "run" / "config.json").exists()


def test_further_clips_are_tried_on_every_row(tmp_path):
    """Also on those that see other things than the run: nothing is trained that could not be compared."""
    spoken = write_voices(tmp_path / "spoken", [1.0] * 40, transcript="It is late.")
    write_voices(tmp_path / "silent", [1.0] * 10)
    (tmp_path / "run").mkdir()
    others = f"evaluation.others={tmp_path / 'silent'}"
    set_up(recipe(spoken, *SMALL, others), tmp_path / "run", Said())
    text_only = row("data.modalities=()", "data.include_transcript=True")
    with pytest.raises(ConfigError, match="(?s)'evaluation.others': .*silent: row 'other': no clip has a transcript"):
        set_up(recipe(spoken, *SMALL, others, *text_only), tmp_path / "run", Said())
    write_voices(tmp_path / "talkative", [1.0] * 10, transcript=TALKATIVE)
    gpt2 = row(*learned(300))
    others = f"evaluation.others={tmp_path / 'talkative'}"
    too_long = r"(?s)talkative: row 'other': 10 of 10 clips .*a prompt of \d\d\d tokens, .* is 300"
    with pytest.raises(ConfigError, match=too_long):
        set_up(recipe(spoken, *SMALL, others, *gpt2), tmp_path / "run", Said())


TALKATIVE = "It is late, and nobody has come. " * 30


def write_mixed(directory):
    """Shards of ten clips, of which one has very much to say."""
    sound = audio_file(seconds=1.0)
    items = [
        Utterance(
            f"clip-{i}", "mine", "test", f"speaker-{i}", audio=sound, labels={"multimodal": "sad"},
            captions={"overall": ("a sad voice",)}, transcript="" if i else TALKATIVE,
        )
        for i in range(10)
    ]  # fmt: skip
    shards.write(items, directory, "a test", {"importer": "test"})


def test_what_has_no_room_among_learned_positions_is_left_out_and_named(tmp_path):
    """One clip that is too long ends neither the set-up nor an evaluation on further clips."""
    spoken = write_voices(tmp_path / "spoken", [1.0] * 40, transcript="It is late.")
    write_mixed(tmp_path / "mixed")
    workdir, others = tmp_path / "run", f"evaluation.others={tmp_path / 'mixed'}"
    workdir.mkdir()
    config = recipe(spoken, *SMALL, *learned(300), others, "data.include_transcript=True")
    bench = set_up(config, workdir, logger := Said())
    (said,) = [line for line in logger.lines if "left out" in line]
    assert said.startswith(f"{tmp_path / 'mixed'}: 1 clips are left out") and said.endswith("clip-0")
    for over in (bench.over(ShardReader(tmp_path / "mixed")), reopen(workdir, tmp_path / "mixed", Said())):
        (clip,) = over.dataset.quarantined
        assert clip.id == "clip-0" and "max_position_embeddings is 300" in clip.reason
        assert len(over.dataset.clips("test")) == 9
        assert over.config.data.buckets[-1].prompt_tokens + over.config.longest_answer <= 300


def test_shapes_are_rounded_up_to_the_room_that_a_rows_network_has(tmp_path):
    """Prompts of 41 tokens are padded to 44; a network with 82 positions has them, too, beside answers of 40."""
    path = write_voices(tmp_path / "shards", [1.0] * 40)
    (tmp_path / "run").mkdir()
    bench = set_up(recipe(path, *SMALL, *row(*learned(82))), tmp_path / "run", Said())
    changed = bench.for_row(bench.config.rows[0])
    sizes = [stage.config.data.buckets[-1].prompt_tokens for stage in (bench, changed)]
    assert sizes == [44, 42] and not changed.dataset.quarantined
    roomy = bench.for_row(dataclasses.replace(bench.config.rows[0], changes=learned(84)))
    assert roomy.dataset is bench.dataset


def test_a_run_goes_on_with_the_corpus_that_it_began_with(tmp_path, monkeypatch, shared):
    """Whatever its settings give today: the same words name another corpus once its generator has changed."""
    small, workdir = ("data.max_bad_fraction=1", *SMALL, shared[1]), tmp_path / "run"
    config, other = (recipe(f"data.synthetic.clips={clips}", *small) for clips in (60, 61))
    monkeypatch.chdir(tmp_path)
    workdir.mkdir()
    began = set_up(config, workdir, Said()).reader.directory
    old = began.rename(began.with_name("synthetic-of-an-earlier-version"))
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["source"]["synthetic"]["stills"]
    write_manifest(old, {name: value for name, value in manifest.items() if name != "sha256"})
    (workdir / "shards.json").write_text(
        json.dumps(read_json_object(workdir / "shards.json") | {"directory": str(old)})
    )
    (workdir / "checkpoints" / "sft" / "3").mkdir(parents=True)
    assert set_up(config, workdir, Said()).reader.directory == old
    assert set_up(config, workdir, Said()).reader.directory == old
    with pytest.raises(ConfigError, match="has learnt from other data"):
        set_up(other, workdir, Said())


def test_a_row_that_asks_for_more_gets_the_room(tmp_path):
    path = write_voices(tmp_path / "shards", [1.0] * 40)
    (tmp_path / "run").mkdir()
    longer = row(f"data.instruction={'Describe the voice. ' * 80}")
    bench = set_up(recipe(path, *SMALL, *longer), tmp_path / "run", Said())
    changed = bench.for_row(bench.config.rows[0])
    assert len(changed.config.data.buckets) == len(bench.config.data.buckets) + 1
    assert changed.dataset.clips("train") == bench.dataset.clips("train") and not changed.dataset.quarantined
    # Where the recipe names the shapes, they are all that there is.
    shapes = str(tuple(dataclasses.asdict(bucket) for bucket in bench.config.data.buckets))
    with pytest.raises(DataError, match="(?s)row 'other': .*does not fit the largest of data.buckets"):
        set_up(recipe(path, *SMALL, *longer, f"data.buckets={shapes}"), tmp_path / "run", Said())


@pytest.mark.parametrize("here, there", [("label", "references"), ("references", "label")])
def test_a_row_whose_reward_judges_by_something_else_has_other_clips(tmp_path, here, there):
    path, against = (
        write_voices(tmp_path / "shards", [1.0] * 40, silent=10),
        "grpo.reward.terms.emotion.options.against",
    )
    (tmp_path / "run").mkdir()
    settings = (*SMALL, "data.max_bad_fraction=.5", f"{against}={here}", *row(f"{against}={there}", stage="grpo"))
    bench = set_up(recipe(path, *settings), tmp_path / "run", Said())
    changed = bench.for_row(bench.config.rows[0])
    clips = {"label": 32, "references": 24}
    assert len(bench.dataset.clips("train")) == clips[here] and len(changed.dataset.clips("train")) == clips[there]


@needs_shared_data
def test_real_voices_in_two_commands(tmp_path):
    manifest = prepare("folder", SHARED, tmp_path / "shards", progress=False, captions="templates")
    assert manifest["records"] == 456 and not manifest["synthetic"]
    assert manifest["datasets"] == {"RAVDESS": 300, "EMO-DB": 156} and manifest["caption_languages"] == {"en": 456}
    assert manifest["speech_languages"] == {"en": 300, "de": 156}
    assert set(manifest["licences"]) == {"CC BY-NC-SA 4.0", "CC0-1.0"}
    (tmp_path / "run").mkdir()
    bench = set_up(recipe(f"data.path={tmp_path / 'shards'}"), tmp_path / "run", logger := Said())
    assert not bench.dataset.quarantined and bench.config.data.modalities == ("audio",)
    assert len(bench.dataset.clips("train")) == 356 and bench.dataset.evaluated_split == "validation"
    (shapes,) = [line for line in logger.lines if line.startswith("shapes: ")]
    assert int(shapes.rpartition("(")[2].partition("%")[0]) < 30
    rows = bench.dataset.clips("train", "sft")
    (batch,) = bench.dataset.training_batches(rows, batch_size=24, steps=1, seed=0, references=2, max_target_tokens=40)
    assert batch.valid.all() and batch.prompt.audio_frames.any() and not batch.prompt.patches.size
