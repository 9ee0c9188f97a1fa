"""Emotion captioning: what MECap-R1 (arXiv 2509.18729) asks, teaches, rewards and measures."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from mecap_jax.config import Config, RewardConfig, RewardSpec
from mecap_jax.data.checks import Judgement, clip_counts, counted, listed, references
from mecap_jax.data.importers.template_captions import fill
from mecap_jax.data.language import has_word
from mecap_jax.data.manifest import ClipRecord
from mecap_jax.data.synthetic.corpus import DATASET as SYNTHETIC
from mecap_jax.emotions import EMOTIONS
from mecap_jax.evaluation.claims import claims_where_known
from mecap_jax.evaluation.java_tools import Meteor
from mecap_jax.evaluation.model_card import About
from mecap_jax.evaluation.stage import EvaluatedClip, StageResult, score_stage
from mecap_jax.rewards.anchors import Anchors, captions_by_label
from mecap_jax.rewards.base import Reward, Sample, normalise_text
from mecap_jax.rewards.combine import RewardFunction, build_reward, check_terms
from mecap_jax.rewards.emotion import DistinctivenessReward, EmotionReward, SemanticReward, emotion_coordinates
from mecap_jax.rewards.guards import OverlongPenalty
from mecap_jax.rewards.lexical import CiderDReward, FluencyReward, RougeLReward
from mecap_jax.rewards.validity import is_degenerate
from mecap_jax.tasks.base import Answer, Judges

DEFAULT_FORM = "softmax"  # of the emotion coordinates


@dataclasses.dataclass(frozen=True)
class Captioning:
    """The task of putting a clip's emotion into words.

    Attributes:
      target: the kind of captions that is learnt and generated.
      instruction: what is asked, the same for every clip.
      form: of the emotion coordinates (see `rewards.emotion`), as the emotion term has them.
      by_label: whether a reward judges captions by the label alone, so that clips without captions are of use.
      label_captions: language of captions that name the label, for training clips without captions; "" for none.
    """

    target: str
    instruction: str
    form: str = "centred"  # as the paper's reconstruction has them, where nothing is rewarded
    by_label: bool = False
    label_captions: str = ""
    asks_meteor = True

    @classmethod
    def from_config(cls, config: Config) -> Captioning:
        """The task that a run's configuration describes."""
        terms = [spec.options for spec in _terms(config) if spec.name == "emotion"]
        return cls(
            config.data.target,
            config.data.instruction,
            *(options.get("form", DEFAULT_FORM) for options in terms),
            by_label=any(options.get("against") == "label" for options in terms),
            label_captions=config.data.label_captions,
        )

    def usable(self, record: ClipRecord) -> str | None:
        """Returns why a clip cannot be used, None if it can."""
        if self.targets(record) or (self.by_label and record.split == "train" and record.label):
            return None
        wordless = " with a word in it" if record.captions.get(self.target) else ""
        return f"has no {self.target!r} caption{wordless}"

    def request(self, record: ClipRecord | None) -> str:
        """Returns what is asked of the model."""
        return self.instruction

    def targets(self, record: ClipRecord) -> tuple[str, ...]:
        """Returns the captions of the kind that is learnt."""
        found = references(record, self.target)
        if self.label_captions and not found and record.split == "train":
            # Captions of the kind that it has all the same have no word in them.
            others = {kind: texts for kind, texts in record.captions.items() if kind != self.target}
            return fill(dataclasses.replace(record, captions=others), self.label_captions).captions.get(self.target, ())
        return found

    def exercise(self, record: ClipRecord, other: ClipRecord, rng: np.random.Generator) -> None:
        """Returns nothing: who captions is asked for nothing else."""

    def read(self, text: str) -> Mapping[str, str]:
        """Returns nothing: a caption is free text."""
        return {}

    def check(
        self,
        config: Config,
        train: Sequence[ClipRecord],
        evaluated: Sequence[ClipRecord],
        records: Sequence[ClipRecord],
    ) -> Judgement:
        """Returns what is wrong, and what is odd, about labels, references and the language of captions."""
        found = Judgement([], [])
        _check_labels(config, train, evaluated, found.remarks)
        if self.by_label:
            _check_anchors(config, train, found.problems)
        self._check_references(config, records, found)
        return found

    def check_rewards(self, config: RewardConfig) -> None:
        """Checks the terms before there are data."""
        check_terms(config, _MAKERS)

    def rewards(self, config: RewardConfig, judges: Judges) -> RewardFunction:
        """Returns what a caption earns. Empty, endless and repetitive ones earn nothing, whatever the terms say."""
        train = [self.targets(record) for record in judges.train]
        return build_reward(config, _MAKERS, _Context(judges, train), is_degenerate)

    def about(self, config: Config) -> About:
        """Returns what a model card says."""
        limits = [
            "The metrics by nearest anchor and the emotion reward come from one sentence encoder; the metrics by first "
            "word know nothing of it."
        ]
        if any(spec.name == "emotion" and spec.weight for spec in _terms(config)):
            limits.append(
                "The emotion reward is a labelled reconstruction: the formula of MECap-R1 (arXiv 2509.18729) is not "
                "public, and results here are not those of the paper."
            )
        return About("describes in words the emotion in a clip", tuple(limits))

    def can_evaluate(self, record: ClipRecord) -> bool:
        """Returns whether there are references: a label alone is enough for a reward, not for the metrics."""
        return bool(self.targets(record))

    def evaluate(self, answers: Sequence[Answer], judges: Judges, meteor: Meteor) -> StageResult:
        """Scores captions: n-gram metrics, sentence similarity, emotion by nearest anchor and by first word.

        Degenerate captions earn no emotion reward, as in training. On the synthetic corpus, where the truth is known,
        also `claims_true` and its parts (`evaluation.claims`).
        """
        clips, samples = [], []
        for group, answer in enumerate(answers):
            record, targets = answer.record, self.targets(answer.record)
            clips.append(EvaluatedClip(record.id, record.speaker, targets, record.label, record.caption_language))
            samples.append(Sample(answer.text, answer.finished, "", record.id, targets, record.label, group))
        texts = [answer.text for answer in answers]
        embeddings = judges.encoder.encode([normalise_text(text) for text in texts])
        values = EmotionReward(judges.encoder, judges.anchors, self.form)(samples)
        rewards = [
            0.0 if value is None or is_degenerate(answer.text, answer.finished) else value
            for answer, value in zip(answers, values)
        ]
        result = score_stage(
            clips,
            texts,
            judges.anchors.labels,
            encode=judges.encoder.encode,
            coordinates=emotion_coordinates(embeddings, judges.anchors, self.form),
            rewards=np.array(rewards),
            meteor=meteor,
        )
        records = [answer.record for answer in answers]
        claims = claims_where_known(texts, records, records[0].caption_language)
        return dataclasses.replace(result, statistics={**result.statistics, **claims})

    def _check_references(self, config: Config, records: Sequence[ClipRecord], found: Judgement) -> None:
        silent = [record for record in records if not references(record, self.target)]
        records = [record for record in records if record.captions.get(self.target)]
        captions = (text for record in records for text in record.captions[self.target])
        wordless = [text for text in captions if not has_word(text)]
        if wordless:
            found.remarks.append(
                f"{counted(wordless, 'reference')} without a word left out: {listed(map(repr, wordless))}"
            )
        guessed = Counter(record.language for record in records if _is_guess(record))
        if guessed:
            found.remarks.append(
                f"captions count as English because their script does not say otherwise, and the speech is in "
                f"{clip_counts(guessed)}: the attribute 'caption_language' of a clip tells better"
            )
        languages = Counter(record.caption_language for record in records if references(record, self.target))
        languages += Counter({self.label_captions: sum(bool(self.targets(record)) for record in silent)})
        foreign = Counter({language: n for language, n in languages.items() if not language.startswith("en")})
        if foreign and not config.encoder.path:
            needed = any(spec.weight and spec.name in _EMBEDDED for spec in _terms(config))
            refused = needed and foreign.total() > config.data.max_bad_fraction * languages.total()
            says = "the reward would be noise" if refused else "figures that rest on it say nothing of these clips"
            (found.problems if refused else found.remarks).append(
                f"captions are in {clip_counts(foreign)}, and the packaged sentence encoder reads English only: "
                f"{says}; name a multilingual one (config key 'encoder.path')"
            )


def _is_guess(record: ClipRecord) -> bool:
    """Whether nothing says that captions are English, and nothing is spoken in English."""
    told = "caption_language" in record.attributes or record.dataset == SYNTHETIC
    return not told and record.caption_language == "en" and record.language.partition("-")[0] not in ("en", "")


def _terms(config: Config) -> tuple[RewardSpec, ...]:
    return config.grpo.reward.terms if config.grpo else ()


def _check_labels(
    config: Config, train: Sequence[ClipRecord], evaluated: Sequence[ClipRecord], remarks: list[str]
) -> None:
    known, captioned = {record.label for record in train if record.label}, _captioned_labels(config, train)
    anchored = _anchored_labels(config, train)
    if config.encoder.anchors:
        if lacking := sorted(known - anchored):
            remarks.append(f"the anchors of config key 'encoder.anchors' lack labels of the clips: {listed(lacking)}")
    elif len(captioned) < 2:
        remarks.append(
            f"training clips with captions have {counted(captioned, 'emotion label')}, too few for anchors of their "
            "own: anchors come from template phrases"
        )
        return
    unseen = Counter(record.label for record in evaluated if record.label and record.label not in anchored)
    if unseen:
        remarks.append(f"labels that training never sees count as missed in evaluation: {clip_counts(unseen)}")


def _check_anchors(config: Config, train: Sequence[ClipRecord], problems: list[str]) -> None:
    """A clip that is judged by its label alone is judged by that label's anchor: without one, any emotion would do."""
    anchored = _anchored_labels(config, train)
    silent = (record for record in train if record.label and not references(record, config.data.target))
    if lacking := Counter(record.label for record in silent if record.label not in anchored):
        problems.append(
            f"the reward judges clips without captions by the anchor of their label, and there is none for "
            f"{clip_counts(lacking)}: give some of these clips captions, leave them out, or name anchors that have "
            "their labels (config key 'encoder.anchors')"
        )


def _anchored_labels(config: Config, train: Sequence[ClipRecord]) -> set[str]:
    """The labels that have an anchor: those of a file, of captions, or, where these tell nothing apart, the usual."""
    if config.encoder.anchors:
        return set(Anchors.load(config.encoder.anchors).labels)
    captioned = _captioned_labels(config, train)
    return captioned if len(captioned) > 1 else set(EMOTIONS)


def _captioned_labels(config: Config, train: Sequence[ClipRecord]) -> set[str]:
    return set(captions_by_label(train, "train", config.data.target))


# --- the terms of the reward -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Context:
    """What the terms are made from: the judges, and the captions of each training clip."""

    judges: Judges
    train: Sequence[Sequence[str]]


def _emotion(
    context: _Context,
    form: str = DEFAULT_FORM,
    over: str = "best",
    shuffled: bool = False,
    against: str = "references",
) -> Reward:
    """`over`: the "best" reference, or the "mean" of all; `shuffled`: similarity to an emotion that means nothing;
    `against`: "references", or the anchor of the clip's "label"."""
    return EmotionReward(context.judges.encoder, context.judges.anchors, form, over, shuffled, against)


def _semantic(context: _Context, over: str = "best") -> Reward:
    return SemanticReward(context.judges.encoder, over)


def _rouge_l(context: _Context, over: str = "best") -> Reward:
    return RougeLReward(over)


def _fluency(context: _Context) -> Reward:
    return FluencyReward(context.train)


def _cider_d(context: _Context) -> Reward:
    return CiderDReward(context.train)


def _distinctiveness(context: _Context, among: str = "all") -> Reward:
    """`among`: "all" training clips, or those of the clip's own "emotion"."""
    if among not in ("all", "emotion"):
        raise ValueError(f"among must be all or emotion, got {among!r}")
    labels = [record.label for record in context.judges.train] if among == "emotion" else ()
    return DistinctivenessReward(context.judges.encoder, context.judges.anchors, context.train, labels)


def _overlong(context: _Context, buffer: int = 8) -> Reward:
    """`buffer`: tokens below the longest length within which the penalty grows."""
    return OverlongPenalty(context.judges.longest_answer, buffer)


_MAKERS = {
    "emotion": _emotion,
    "semantic": _semantic,
    "rouge_l": _rouge_l,
    "fluency": _fluency,
    "cider_d": _cider_d,
    "distinctiveness": _distinctiveness,
    "overlong": _overlong,
}
_EMBEDDED = ("emotion", "semantic", "distinctiveness")  # rest on the sentence encoder
