"""MECap-R1's two stages on real voices: SFT and Emo-GRPO of a tiny decoder that reads a frozen encoder's features.

For some hundred clips with labels, such as RAVDESS or EMO-DB: shards of `prepare_data.py --captions=plain_prosody` with
features of Whisper-base (`extract_features.py --layer=3`) as z-scores over the clips of each speaker
(`normalise_features.py`), named by `data.path`. Minutes on two cores.

`real_voices.py:train` reads z-scores over the training clips (`--by=train`), which a single clip of a stranger has too.
`real_voices.py:speaker,face` and `:train,face` read the 56 numbers of a face beside the voice, normalised likewise.
"""

import dataclasses
from pathlib import Path

from mecap_jax.config import AugmentConfig, Config, ConfigError, load
from mecap_jax.model_config import FeatureProjectorConfig


def get_config(arg: str = "") -> Config:
    by, *more = (arg or "speaker").split(",")
    if by not in ("speaker", "train") or more not in ([], ["face"]):
        raise ConfigError(f"--config: expected real_voices.py[:speaker|:train[,face]], got {arg!r}")
    whole = load(str(Path(__file__).with_name("grpo.py")))
    replace = dataclasses.replace
    # Utterance features alone: with 300 clips a decoder learns every clip by heart from more.
    names, dims = (f"whisper-base-{by}-UTT",), (512,)
    if more:
        names, dims = (*names, f"face-{by}-UTT"), (*dims, 56)
    features = FeatureProjectorConfig(names=names, dims=dims, hidden_size=512)
    model = replace(
        whole.model,
        name="real_voices",
        family="qwen2",
        decoder=replace(whole.model.decoder, num_hidden_layers=2, mrope_section=None),
        audio=None,
        vision=None,
        features=features,
    )
    return replace(
        whole,
        name="real_voices",
        model=model,
        data=replace(
            whole.data,
            modalities=("features",),
            # Actors say the same few sentences in every emotion: words would only tell the corpora apart.
            include_transcript=False,
            transcript_dropout=0.0,
            # As large as what features vary by: without it every clip is soon known by heart.
            augment=AugmentConfig(feature_noise=1.0),
        ),
        # Without test clips the report is on the validation clips: nothing may be chosen by them.
        sft=replace(
            whole.sft,
            steps=200,
            references=1,
            max_target_tokens=32,
            optimizer=replace(whole.sft.optimizer, learning_rate=4e-3),
            validate_every=0,
        ),
        # Of training clips without noise SFT has left nothing to learn.
        grpo=replace(
            whole.grpo,
            steps=10,
            augment=True,
            max_new_tokens=32,
            loss=replace(whole.grpo.loss, references=1),
            validate_every=0,
        ),
        rows=tuple(row for row in whole.rows if row.name in ("reward_off", "sft_control")),
    )
