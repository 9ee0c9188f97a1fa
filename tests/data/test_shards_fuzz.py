"""Damaged manifests, indices, records, tables and features: refused in words, or read; never anything else."""

import csv
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import msgpack
import numpy as np
import pytest

from mecap_jax.data import manifest, shards
from mecap_jax.data.importers import BadClip, Duplicate, ImporterError, ImportSettings, folder
from mecap_jax.data.importers.feature_files import read_features
from mecap_jax.data.importers.template_captions import fill
from mecap_jax.data.inspection import read
from mecap_jax.data.shards import ShardError, ShardReader
from mecap_jax.data.utterance import Utterance, UtteranceError, deserialize, serialize
from tests.data.clips import audio_file
from tests.fuzz import json_mutant, mutant

SECONDS = 5.0  # of processor time, for one input


class Workplace:
    """A directory of shards and a folder of clips, in which one file after another is damaged and mended.

    Each method damages one thing with the given source of randomness and tries it; it returns whether it was read.
    """

    def __init__(self, root: Path):
        self.shards, self.folder = root / "shards", root / "folder"
        self.utterances = [
            Utterance(
                id=f"clip-{i}",
                dataset="fuzz",
                split=("train", "validation")[i % 2],
                speaker=f"s{i % 3}",
                transcript="What is said\u2028here.",
                features={"face": np.ones((2, 3), np.float32)},
                labels={"multimodal": "sad"},
                captions={"overall": ("A sad voice.", "Sadness.")},
                attributes={"gender": "female"},
                valence=-1.0,
            )
            for i in range(6)
        ]
        source = {"importer": "fuzz", "seed": 0}
        shards.write([*self.utterances, BadClip("bad", "gone")], self.shards, "fuzz", source, shard_size=2)
        (self.folder / "features" / "face-UTT").mkdir(parents=True)
        (self.folder / "a.wav").write_bytes(audio_file(seconds=0.05))
        np.save(self.folder / "features" / "face-UTT" / "a.npy", np.arange(6, dtype=np.float32).reshape(2, 3))
        self.rows = [
            {
                "id": i,
                "audio": "a.wav",
                "features": {"f": "features/face-UTT/a.npy"},
                "split": "train",
                "speaker": "anna",
                "label": "happy",
                "labels": {"audio": "sad"},
                "valence": 0.5,
                "captions": {"overall": ["One.", "Two."], "style": "Loud."},
                "attributes": {"age": 3},
                "extra": {"nested": [1, None]},
            }
            for i in range(3)
        ]

    def manifest_bytes(self, random: np.random.Generator) -> bool:
        return self._in_place(self.shards / "manifest.json", lambda data: mutant(data, random), self._read_shards)

    def manifest_fields(self, random: np.random.Generator) -> bool:
        """Fields that somebody changed who can compute the checksum."""

        def change(data: bytes) -> bytes:
            changed = json_mutant(json.loads(data), random)
            changed.pop("sha256", None)
            try:
                changed["sha256"] = manifest._digest(changed)
            except ShardError:  # NaN: written as Python writes it
                pass
            return json.dumps(changed).encode()

        return self._in_place(self.shards / "manifest.json", change, self._read_shards)

    def index_bytes(self, random: np.random.Generator) -> bool:
        return self._in_place(self.shards / "index.jsonl", lambda data: mutant(data, random), self._read_signed_index)

    def index_fields(self, random: np.random.Generator) -> bool:
        def change(data: bytes) -> bytes:
            rows = [json.loads(line) for line in data.splitlines()]
            row = int(random.integers(len(rows)))
            rows[row] = json_mutant(rows[row], random)
            return "".join(json.dumps(row) + "\n" for row in rows).encode()

        return self._in_place(self.shards / "index.jsonl", change, self._read_signed_index)

    def shard(self, random: np.random.Generator) -> bool:
        return self._in_place(
            self.shards / "train-00000.arrayrecord", lambda data: mutant(data, random), self._read_shards
        )

    def record(self, random: np.random.Generator) -> bool:
        data = mutant(serialize(self.utterances[0]), random)
        return _read(lambda: deserialize(data), UtteranceError)

    def record_fields(self, random: np.random.Generator) -> bool:
        fields = json_mutant(msgpack.unpackb(serialize(self.utterances[0])), random)
        try:
            data = msgpack.packb(fields)
        except (OverflowError, UnicodeEncodeError):  # msgpack has no such value
            return False
        return _read(lambda: deserialize(data), UtteranceError)

    def table(self, random: np.random.Generator) -> bool:
        """A manifest of a folder, as JSON Lines or as CSV, damaged as bytes or row by row."""
        rows = [json_mutant(row, random) if random.integers(3) == 0 else row for row in self.rows]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        name = "manifest.jsonl"
        if random.integers(2):
            name, columns = "manifest.csv", list(self.rows[0])
            cells = [[json.dumps(row[column]) if column in row else "" for column in columns] for row in rows]
            file = io.StringIO()
            csv.writer(file).writerows([columns, *cells])
            text = file.getvalue()
        data = text.encode("utf-8", "surrogatepass")
        (self.folder / name).write_bytes(mutant(data, random) if random.integers(2) else data)
        try:
            return _read(self._read_folder, ImporterError)
        finally:
            (self.folder / name).unlink()

    def feature_file(self, random: np.random.Generator) -> bool:
        path = "features/face-UTT/a.npy"
        return self._in_place(
            self.folder / path, lambda data: mutant(data, random), lambda: read_features(self.folder, path), ValueError
        )

    def _read_shards(self) -> None:
        reader = ShardReader(self.shards, verify=False)
        for number in range(len(reader)):
            assert isinstance(reader[number], Utterance)
        assert all(BadClip(**clip).id for clip in reader.manifest["quarantined"])

    def _read_signed_index(self) -> None:
        """The index with the checksum and the number of lines that it has now."""
        path = self.shards / "manifest.json"
        original = path.read_bytes()
        fields = json.loads(original)
        fields["index"]["sha256"] = manifest.sha256(self.shards / "index.jsonl")
        manifest.write_manifest(self.shards, fields)
        try:
            self._read_shards()
        finally:
            path.write_bytes(original)

    def _read_folder(self) -> None:
        settings = ImportSettings(label_map={"happy": "sad"})
        items = list(map(read, folder.clips(self.folder, settings)))
        for item in items:
            assert isinstance(item, Utterance | BadClip | Duplicate)
            if isinstance(item, Utterance):
                assert deserialize(serialize(fill(item, "en"))).id == item.id
        shards.summarise_bad([item for item in items if isinstance(item, BadClip)]).encode()

    def _in_place(
        self, path: Path, change: Callable[[bytes], bytes], read: Callable, errors=(ShardError, UtteranceError)
    ) -> bool:
        original = path.read_bytes()
        path.write_bytes(change(original))
        try:
            return _read(read, errors)
        finally:
            path.write_bytes(original)


def _read(read: Callable, errors) -> bool:
    """Whether `read` gave something.

    Raises:
      AssertionError: it took too long. Whatever else it raises but `errors` is a fault.
    """
    begin = time.process_time()
    try:
        read()
        return True
    except errors as error:
        assert str(error)
        str(error).encode()
        return False
    finally:
        assert time.process_time() - begin < SECONDS


TARGETS = {
    "manifest_bytes": 150,
    "manifest_fields": 500,
    "index_bytes": 150,
    "index_fields": 250,
    "shard": 250,
    "record": 2000,
    "record_fields": 2000,
    "table": 600,
    "feature_file": 800,
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("target", TARGETS)
def test_damage_is_refused_in_words_or_read(workplace, target):
    damage = getattr(workplace, target)
    read = [damage(np.random.default_rng((0, number))) for number in range(TARGETS[target])]
    assert any(read) or target in ("manifest_bytes", "index_bytes")  # there, hardly any damage stays JSON
    assert not all(read)
