"""Supervised fine-tuning alone, on the data and with the model of `grpo.py`; takes the same argument."""

import dataclasses
from pathlib import Path

from mecap_jax.config import Config, load


def get_config(arg: str = "") -> Config:
    whole = load(f"{Path(__file__).with_name('grpo.py')}:{arg}")
    return dataclasses.replace(whole, name=whole.name.replace("grpo", "sft", 1), grpo=None, rows=whole.rows[:1])
