"""The embedded synthetic corpus as an importer: nothing is read, clips are rendered."""

from __future__ import annotations

import functools

from mecap_jax.data.importers import BadClip, ImportSettings, Pending
from mecap_jax.data.synthetic.corpus import ClipSpec, plan, render
from mecap_jax.data.synthetic.espeak import SpeechError
from mecap_jax.data.utterance import Utterance

IN_PROCESSES = True  # rendering is Python's work more than a library's


def clips(input: None, settings: ImportSettings) -> list[Pending]:
    """Returns the clips of the corpus in the order of its plan.

    Args:
      input: None, the corpus is generated.
      settings: size, seed and languages of the corpus.

    Raises:
      ConfigError: a setting that the corpus cannot have.
    """
    return [functools.partial(render_or_report, spec) for spec in plan(settings.synthetic)]


def render_or_report(spec: ClipSpec) -> Utterance | BadClip:
    """Returns a clip, or why it cannot be rendered."""
    try:
        return render(spec)
    except SpeechError as error:
        return BadClip(id=spec.id, reason=str(error))
