"""Supervised fine-tuning alone, on the data and with the model of `grpo.py`; takes the same argument."""

import dataclasses
from pathlib import Path

from mecap_jax.config import Config, load


def get_config(arg: str = "") -> Config:
    whole = load(f"{Path(__file__).with_name('grpo.py')}:{arg}")
    rows = tuple(row for row in whole.rows if row.stage == "sft" and not row.steps_of)  # the others need GRPO
    return dataclasses.replace(whole, name=whole.name.replace("grpo", "sft", 1), grpo=None, rows=rows)
