"""MECap-R1's two stages on real voices: SFT and Emo-GRPO of a tiny decoder that reads a frozen encoder's features.

For some hundred clips with labels, such as RAVDESS or EMO-DB: shards of `prepare_data.py --captions=prosody` with
features of Whisper-base (`extract_features.py --layer=3`), named by `data.path`. Minutes on two cores.
"""

import dataclasses
from pathlib import Path

from mecap_jax.config import AugmentConfig, Config, ConfigError, load
from mecap_jax.model_config import FeatureProjectorConfig


def get_config(arg: str = "") -> Config:
    if arg:
        raise ConfigError(f"--config: real_voices.py takes no argument, got {arg!r}")
    whole = load(str(Path(__file__).with_name("grpo.py")))
    replace = dataclasses.replace
    # Utterance features alone: with 300 clips a decoder learns every clip by heart from more.
    features = FeatureProjectorConfig(names=("whisper-base-UTT",), dims=(512,), hidden_size=128)
    model = replace(
        whole.model,
        name="real_voices",
        family="qwen2",
        decoder=replace(whole.model.decoder, mrope_section=None),
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
            augment=AugmentConfig(),
        ),
        # Without test clips the report is on the validation clips: nothing may be chosen by them.
        sft=replace(whole.sft, steps=300, max_target_tokens=56, validate_every=0),
        grpo=replace(whole.grpo, max_new_tokens=56, validate_every=0),
        rows=tuple(row for row in whole.rows if row.name in ("reward_off", "sft_control")),
    )
