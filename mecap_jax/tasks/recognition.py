"""Emotion recognition with a rationale or in steps: what R1-Omni (arXiv 2503.05379), ERV (arXiv 2510.23506) and EMO-R3
(arXiv 2602.23802) ask, teach and measure. What they reward stands in `recognition_terms`, who judges in `verifiers`.

Training and evaluation ask in the same words, and the same strict parser reads what comes back: an answer that does not
follow the protocol, or names no class of the label set, is wrong everywhere.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from mecap_jax.config import Config, ConfigError, RewardConfig, is_path
from mecap_jax.data.checks import Judgement, clip_counts
from mecap_jax.data.language import caption_language
from mecap_jax.data.manifest import ClipRecord
from mecap_jax.data.questions import Exercise
from mecap_jax.evaluation.affect import affect_error, label_divergence
from mecap_jax.evaluation.claims import claims_where_known
from mecap_jax.evaluation.faithfulness import faithfulness
from mecap_jax.evaluation.intervals import Statistic, mean
from mecap_jax.evaluation.java_tools import Meteor
from mecap_jax.evaluation.judge_endpoint import ADDRESS_VARIABLE, ENDPOINT, EndpointJudge
from mecap_jax.evaluation.model_card import About
from mecap_jax.evaluation.open_vocabulary import wheel_scores
from mecap_jax.evaluation.recognition import Recognition as Agreement
from mecap_jax.evaluation.recognition import recognition
from mecap_jax.evaluation.stage import EvaluatedClip, StageResult
from mecap_jax.rewards.accuracy import split_words
from mecap_jax.rewards.base import RewardError
from mecap_jax.rewards.combine import RewardFunction, build_reward, check_terms
from mecap_jax.rewards.explanation import Verifier, anchor_verifier
from mecap_jax.rewards.reflection import REPLIES, STEPS, coherence_question, consistency_question
from mecap_jax.rewards.wheels import EmotionWheels, load_wheels
from mecap_jax.tasks.base import Answer, Judges
from mecap_jax.tasks.coordinates import Coordinates, coordinates
from mecap_jax.tasks.labels import LabelSet, label_set
from mecap_jax.tasks.protocols import PROTOCOLS, Protocol
from mecap_jax.tasks.recognition_terms import RATIONALE, TERMS, Context
from mecap_jax.tasks.verifiers import Judge, verifier_judge, verifier_of

_QUESTION = {
    "en": "Which emotion does the speaker show most clearly, in voice, face and words?",
    "zh": "从声音、表情和话语来看，说话人最明显地表现出哪一种情感？",
}
_OPEN_QUESTION = {
    "en": "Which emotions does the speaker show, in voice, face and words?",
    "zh": "从声音、表情和话语来看，说话人表现出哪些情感？",
}


@dataclasses.dataclass(frozen=True)
class Recognition:
    """The task of naming a clip's emotion.

    Attributes:
      protocol: the form of an answer; one of its blocks is the answer.
      labels: which answers there are.
      language: of request and targets, "en" or "zh".
      places: where the classes lie among each other, for `affect_error`; None leaves it out.
      wheels: the classes of words, for `wheel_f1`; None leaves it out.
      judge: what judges explanations in evaluation: a text classifier's directory, "endpoint", or "" for the emotion
        anchors; `judge_model`, `judge_timeout_s`: of an endpoint.
    """

    protocol: Protocol
    labels: LabelSet
    language: str = "en"
    places: Coordinates | None = None
    wheels: EmotionWheels | None = None
    judge: str = ""
    judge_model: str = ""
    judge_timeout_s: float = 30.0
    asks_meteor = False

    @classmethod
    def from_config(cls, config: Config) -> Recognition:
        """The task that a run's configuration describes.

        Raises:
          ConfigError: a protocol without an answer or that there is not, a label set or a table that cannot be read.
        """
        task = config.task
        protocol = PROTOCOLS.get(task.protocol)
        if protocol is None or protocol.answer is None:
            known = ", ".join(name for name, p in PROTOCOLS.items() if p.answer)
            raise ConfigError(f"config key 'task.protocol': {task.protocol!r} has no answer; choose one of {known}")
        try:
            labels = label_set(task.labels)
        except ConfigError as error:
            raise ConfigError(f"config key 'task.labels': {error}") from error
        if task.places and labels.is_open:
            raise ConfigError("config key 'task.places': an open vocabulary has no classes that lie somewhere")
        try:
            places = coordinates(task.places, labels) if task.places else None
        except ConfigError as error:
            raise ConfigError(f"config key 'task.places': {error}") from error
        try:
            wheels = load_wheels(task.wheels) if task.wheels else None
        except RewardError as error:
            raise ConfigError(f"config key 'task.wheels': {error}") from error
        judge = (task.judge, task.judge_model, task.judge_timeout_s)
        return cls(protocol, labels, task.language, places, wheels, *judge)

    def usable(self, record: ClipRecord) -> str | None:
        """Returns why a clip cannot be used, None if it can."""
        if record.label is None:
            return "has no emotion label"
        if self.labels.normalise(record.label) is None:
            return f"has the label {record.label!r}, which is not in the label set {self.labels.name!r}"
        return None

    def request(self, record: ClipRecord | None) -> str:
        """Returns what is asked of the model, the same for every clip."""
        question = (_OPEN_QUESTION if self.labels.is_open else _QUESTION)[self.language]
        names = self.labels.names[self.language]
        return f"{question}\n{self.protocol.instruction(self.language, names, self.labels.is_open)}"

    def targets(self, record: ClipRecord) -> tuple[str, ...]:
        """Returns the answers that a clip teaches: none where it lacks a part that the protocol wants.

        The explanation is the clip's rationale; other parts are attributes of their names ("step1", "aud_desc").
        """
        label = self.labels.normalise(record.label or "")
        answer = label and self.labels.display(label, self.language)
        known = {**record.attributes, RATIONALE: record.rationale, self.protocol.answer: answer}
        fields = {block.name: known.get(block.name) for block in self.protocol.blocks}
        try:
            return () if None in fields.values() else (self.protocol.render(fields, self.labels.is_open),)
        except ValueError:  # a rationale that holds a mark of the protocol, or no word
            return ()

    def exercise(self, record: ClipRecord, other: ClipRecord, rng: np.random.Generator) -> Exercise | None:
        """Returns one of the questions that EMO-R3 asks the policy about its own steps, on the steps of a known answer.

        Half of them are of the text alone; of those with the media, about half describe another clip, of another class.
        """
        known = record.attributes
        if self.labels.is_open or not all(step in self.parts and step in known for step in STEPS):
            return None
        label = self.labels.normalise(record.label or "")
        if rng.random() < 0.5:
            question = coherence_question(known, self.labels.names[self.language], self.language)
            return Exercise(question, self.labels.display(label, self.language), media=False)
        differs = STEPS[0] in other.attributes and self.labels.normalise(other.label or "") != label
        is_true = not differs or rng.random() < 0.5
        question = consistency_question(known if is_true else other.attributes, self.language)
        return Exercise(question, REPLIES[self.language][not is_true], media=True)

    def read(self, text: str) -> Mapping[str, str]:
        """Returns the fields of an answer, empty for a malformed one."""
        return self.protocol.parse(text, self.labels.is_open).fields

    def answer(self, fields: Mapping[str, str]) -> str | None:
        """Returns the class that an answer with these fields names, if any."""
        return self.labels.normalise(fields[self.protocol.answer]) if fields else None

    @property
    def parts(self) -> tuple[str, ...]:
        """What an answer is made of beside the class that it names."""
        return tuple(block.name for block in self.protocol.blocks if not block.is_answer)

    @property
    def explains(self) -> bool:
        """Whether an answer says why."""
        return bool(self.parts)

    @property
    def judges_explanations(self) -> bool:
        """Whether a judge says which class an explanation speaks for."""
        return self.explains and not self.labels.is_open

    def explanation(self, fields: Mapping[str, str]) -> str:
        """Returns all that an answer with these fields says beside the class; "" for a malformed one."""
        return " ".join(fields[name] for name in self.parts if name in fields)

    def check(
        self,
        config: Config,
        train: Sequence[ClipRecord],
        evaluated: Sequence[ClipRecord],
        records: Sequence[ClipRecord],
    ) -> Judgement:
        """Returns what is odd about labels, about what there is to learn from, and about who judges explanations."""
        found = Judgement([], [])
        if self.judges_explanations:
            self._check_judges(config, train, found)
        if self.labels.is_open and self.wheels is None:
            found.remarks.append(
                "answers are words of an open vocabulary, and nothing says how good they are: name a file of emotion "
                "wheels (config key 'task.wheels')"
            )
        known = {self.labels.normalise(record.label) for record in train}
        unseen = Counter(record.label for record in evaluated if self.labels.normalise(record.label) not in known)
        if unseen and not self.labels.is_open:
            found.remarks.append(f"labels that no training clip has: {clip_counts(unseen)}")
        silent = [record for record in train if not self.targets(record)]
        if config.sft is not None and silent:
            found.remarks.append(
                f"{len(silent)} of {len(train)} training clips lack what an answer in the form "
                f"{config.task.protocol!r} is made of; they are left to reinforcement learning"
            )
        return found

    def _check_judges(self, config: Config, train: Sequence[ClipRecord], found: Judgement) -> None:
        if self.judge:
            try:
                self._judge(None)
            except ConfigError as error:
                found.problems.append(str(error))
        language = caption_language(record.rationale or "" for record in train) or self.language
        if language == "en" or config.encoder.path:
            return
        unread = f"explanations are in {language!r}, and the packaged sentence encoder reads English only"
        terms = config.grpo.reward.terms if config.grpo else ()
        if any(spec.name == "explanation" and spec.weight and not spec.options.get("verifier") for spec in terms):
            found.problems.append(
                f"{unread}: the term 'explanation' would be noise; name a multilingual one (config key 'encoder.path') "
                "or a text classifier (the term's option 'verifier')"
            )
        if not self.judge:
            found.remarks.append(
                f"{unread}: EEA, FCR and EPC say nothing of them; name a multilingual one (config key 'encoder.path') "
                "or a text classifier (config key 'task.judge')"
            )

    def _judge(self, judges: Judges | None) -> Judge:
        """What judges explanations in evaluation; it needs `judges` where no classifier is named."""
        try:
            if self.judge == ENDPOINT:
                names, language = self.labels.names[self.language], self.language
                return EndpointJudge(self.judge_model, names, self.labels.normalise, language, self.judge_timeout_s)
            if "://" in self.judge:
                raise ValueError(
                    f"{self.judge!r} is an address: name {ENDPOINT!r}, and the variable {ADDRESS_VARIABLE}"
                )
            return verifier_judge(self.verifier(self.judge, judges), self.labels)
        except ValueError as error:
            raise ConfigError(f"config key 'task.judge': {error}") from error

    def verifier(self, directory: str, judges: Judges | None) -> Verifier:
        """A classifier's, or with "" that of the anchors; what the label set takes for one class is one."""
        made = verifier_of(directory) if directory else anchor_verifier(judges.encoder, judges.anchors)
        return dataclasses.replace(made, labels=tuple(self.labels.spelt(label) or label for label in made.labels))

    def check_rewards(self, config: RewardConfig) -> None:
        """Checks the terms, and loads the text classifiers that they name, before there are data."""
        check_terms(config, TERMS)
        for spec in config.terms:
            if is_path(directory := spec.options.get("verifier")):
                try:
                    verifier_of(directory)
                except ValueError as error:
                    raise ConfigError(f"config key 'grpo.reward.terms': {spec.name!r}: {error}") from error

    def rewards(self, config: RewardConfig, judges: Judges) -> RewardFunction:
        """Returns what an answer earns. A chain of thought may repeat a phrase: the terms judge all by themselves."""
        context = Context(
            answer=self.protocol.answer,
            parts=self.parts,
            labels=self.labels,
            language=self.language,
            verifier=lambda directory: self.verifier(directory, judges),
            longest_answer=judges.longest_answer,
        )
        return build_reward(config, TERMS, context)

    def about(self, config: Config) -> About:
        """Returns what a model card says."""
        classes = ", ".join(self.labels.names[self.language])
        limits = [f"It answers with one of these classes, whatever it hears and sees: {classes}."]
        if self.labels.is_open:
            limits = ["It answers with emotion words of its own, and may put the same emotion into different ones."]
        if self.judges_explanations:
            judge = "a judge of its own" if self.judge else "the nearest emotion anchor of a sentence encoder"
            limits.append(
                "An explanation is written before the answer and need not be its cause. Whether explanations speak for "
                f"the right emotion (EEA, FCR, EPC) is judged by {judge}."
            )
        does = "names the emotion in a clip and says why" if self.explains else "names the emotion in a clip"
        return About(does, tuple(limits))

    def can_evaluate(self, record: ClipRecord) -> bool:
        """Returns True: clips that can be used have a label."""
        return True

    def evaluate(self, answers: Sequence[Answer], judges: Judges, meteor: Meteor) -> StageResult:
        """Scores one answer a clip, as `score` does; explanations are judged by the task's judge.

        On the synthetic corpus, where the truth is known, also `claims_true` and its parts (`evaluation.claims`).
        """
        texts = [answer.text for answer in answers]
        records = [answer.record for answer in answers]
        judge = self._judge(judges) if self.judges_explanations else None
        scores = self.score(texts, [record.label for record in records], judge)
        gold = [self.labels.normalise(record.label) for record in records]
        clips = [
            EvaluatedClip(record.id, record.speaker, self.targets(record), label, record.caption_language)
            for record, label in zip(records, gold)
        ]
        statistics = dict(scores.statistics)
        if self.explains:
            explanations = [self.explanation(self.read(text)) for text in texts]
            statistics |= claims_where_known(explanations, records, self.language)
        right = [float(answer == truth) for answer, truth in zip(scores.answers, gold)]
        return StageResult(
            tuple(clips),
            tuple(texts),
            scores.answers,
            statistics,
            unavailable={},
            tokenisation="",
            classes=self.labels.labels,
            confusion=scores.agreement.confusion if scores.agreement else None,
            reading="answer",
            readings={"answer": scores.answers},
            rewards={"accuracy": right},
        )

    def score(self, texts: Sequence[str], gold: Sequence[str], judge: Judge | None = None) -> Scores:
        """Scores one answer a clip.

        Statistics by key, all shares of clips unless said otherwise: `format` (the answer follows the protocol); `war`
        and `uar` (weighted and unweighted average recall) and `recall/LABEL`; `label_kl` and `label_js` (divergence of
        the answers' distribution from that of the gold labels, in nats); with `places` `affect_error` (mean distance
        of answer and gold label); with a judge and a protocol that explains also `eea`, `fcr`, `epc` and the four
        quadrants of ERV, of the clips that the judge has a verdict for. A malformed answer is wrong in all of them.
        With `wheels` also `wheel_f1`, `wheel_precision`, `wheel_recall` and their mean `wheel_average`
        (`evaluation.open_vocabulary`); of an open vocabulary these and `format` are all.

        Raises:
          ValueError: lengths differ, or a gold label that is not in the label set.
        """
        if len(texts) != len(gold):
            raise ValueError(f"{len(texts)} answers for {len(gold)} clips")
        fields = [self.read(text) for text in texts]
        answers = [self.answer(parts) for parts in fields]
        truth = [self.labels.normalise(label) for label in gold]
        if None in truth:
            raise ValueError(f"the gold label {gold[truth.index(None)]!r} is not in the label set {self.labels.name!r}")
        statistics = {"format": mean([bool(parts) for parts in fields])}
        if self.wheels is not None:
            said, meant = ([split_words(words or "") for words in found] for found in (answers, truth))
            by_wheel = vars(wheel_scores(said, meant, self.wheels))
            statistics |= {f"wheel_{name}": statistic for name, statistic in by_wheel.items()}
        if self.labels.is_open:
            return Scores(tuple(answers), statistics, None)
        found = recognition(answers, truth, self.labels.labels)
        divergence = label_divergence(answers, truth, self.labels.labels)
        statistics |= {
            "war": found.war,
            "uar": found.uar,
            **{f"recall/{label}": recall for label, recall in found.recalls.items()},
            "label_kl": divergence.kl,
            "label_js": divergence.js,
        }
        if self.places is not None:
            statistics["affect_error"] = affect_error(answers, truth, self.places)
        if judge is not None and self.explains:
            explained = [i for i, parts in enumerate(fields) if parts]
            judged: list[str | None] = [""] * len(fields)  # a malformed answer explains nothing
            verdicts = judge([self.explanation(fields[i]) for i in explained]) if explained else ()
            for i, emotion in zip(explained, verdicts):
                judged[i] = emotion
            silent = [verdict is None for verdict in judged]
            if self.judge == ENDPOINT:  # any other judge has an answer to everything
                statistics["judge_silent"] = mean(silent, np.array([bool(parts) for parts in fields]))
            told = faithfulness(answers, judged, truth, silent)
            statistics |= {"eea": told.eea, "fcr": told.fcr, "epc": told.epc, **told.quadrants}
        return Scores(tuple(answers), statistics, found)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a stage answers and how right that is.

    Attributes:
      answers: the class that each answer names; None where it names none.
      statistics: metrics by key, see `Recognition.score`.
      agreement: recalls and confusion by class; None of an open vocabulary.
    """

    answers: tuple[str | None, ...]
    statistics: Mapping[str, Statistic]
    agreement: Agreement | None
