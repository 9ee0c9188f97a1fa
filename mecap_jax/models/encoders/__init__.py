"""Frozen encoders whose states are stored as features: Whisper, wav2vec 2.0 and HuBERT of sound, CLIP and SigLIP of
pictures.

Each equals its class in `transformers`; `experiment.frozen_encoder` opens a Hugging Face directory.
"""
