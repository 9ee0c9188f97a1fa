"""The configuration of a run: frozen dataclasses, loaded from a recipe file, overridden from the command line and
validated as a whole before anything expensive starts.

A recipe is a short Python file with `get_config(arg) -> Config`. `load("configs/grpo.py", ["seed=1"])` reads it and
applies overrides such as `grpo.group_size=4`; an unknown key, a value of the wrong type or an impossible combination
raises one `ConfigError` that names the key.
"""

from mecap_jax.config.loading import (
    differences,
    from_json,
    load,
    to_json,
)
from mecap_jax.config.paths import (
    is_custom,
    is_path,
    with_absolute_paths,
)
from mecap_jax.config.rows import (
    chosen_rows,
    row_config,
    row_of,
    stage_config,
)
from mecap_jax.config.schema import (
    DEFAULT_ANSWER_TOKENS,
    MEDIA_SETTINGS,
    AugmentConfig,
    Bucket,
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    GrpoConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    RewardConfig,
    RewardSpec,
    RowConfig,
    SftConfig,
    SyntheticConfig,
    TaskConfig,
    schedule_factor,
)
from mecap_jax.config.validation import (
    MODALITIES,
    lookup,
    validate,
    validate_devices,
)
from mecap_jax.config.values import checked

__all__ = [
    "AugmentConfig",
    "Bucket",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DEFAULT_ANSWER_TOKENS",
    "DataConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "GrpoConfig",
    "LossConfig",
    "MEDIA_SETTINGS",
    "MODALITIES",
    "MeshConfig",
    "OptimizerConfig",
    "RewardConfig",
    "RewardSpec",
    "RowConfig",
    "SftConfig",
    "SyntheticConfig",
    "TaskConfig",
    "checked",
    "chosen_rows",
    "differences",
    "from_json",
    "is_custom",
    "is_path",
    "load",
    "lookup",
    "row_config",
    "row_of",
    "schedule_factor",
    "stage_config",
    "to_json",
    "validate",
    "validate_devices",
    "with_absolute_paths",
]
