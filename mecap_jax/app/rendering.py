"""What the page shows, as HTML. All text in it comes from files and models, and is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from mecap_jax.app import drawing
from mecap_jax.app.captions import EVERYTHING, Said, Shown
from mecap_jax.app.clips import Clips, by_modality
from mecap_jax.app.curves import Curve, paired
from mecap_jax.app.rollouts import FORMAT_TERM, Group, by_reward
from mecap_jax.app.words import differing
from mecap_jax.captioning import Captioned
from mecap_jax.data.containers import parts
from mecap_jax.data.media import MediaError
from mecap_jax.data.utterance import Utterance
from mecap_jax.evaluation.players import MEDIA_TYPES, data_address, media_element
from mecap_jax.rewards.lexical import tokenize
from mecap_jax.tasks.protocols import Parsed, Protocol
from mecap_jax.text_files import printable

_MOST_COMPLETIONS, _MOST_TERMS = 64, 40  # of a group that are shown
_MOST_CHARTS = 48
_PLAYED = 24 * 2**20  # bytes of a clip that go into the page
CSS = """
.mecap {font-size: 14px; line-height: 1.45; overflow-wrap: anywhere}
.mecap h3 {font-size: 15px; font-weight: 600; margin: 10px 0 4px} .mecap p {margin: 4px 0}
.mecap .sides {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 12px}
.mecap .pair {grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr))}
.mecap .card {border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 10px 12px; min-width: 0}
.mecap .first {border-left: 4px solid #D55E00} .mecap .second {border-left: 4px solid #0072B2}
.mecap .error {border-left: 4px solid #D55E00; padding: 6px 10px; background: var(--background-fill-secondary)}
.mecap .small {font-size: 12px; opacity: .8}
.mecap .said {font-size: 16px} .mecap blockquote {margin: 4px 0; padding-left: 10px; border-left: 3px solid #999}
.mecap mark {background: #F0E44299; color: inherit; border-radius: 3px; padding: 0 1px}
.mecap dl.bars {display: grid; grid-template-columns: max-content 1fr 44px; gap: 3px 8px; margin: 6px 0}
.mecap .bars dd {margin: 0; position: relative; text-align: right; min-height: 1em}
.mecap .bars i {position: absolute; top: 20%; height: 60%; background: #0072B2; border-radius: 2px; min-width: 1px}
.mecap figure {margin: 8px 0; min-width: 0} .mecap figcaption {font-size: 12px; opacity: .8}
.mecap .wave svg {width: 100%; height: 70px; display: block}
.mecap .frames {display: flex; flex-wrap: wrap; gap: 4px} .mecap .frames img {width: 72px; height: auto; margin: 0}
.mecap .frames figcaption {width: 100%}
.mecap .charts {max-height: 445px; overflow-y: auto}
.mecap .charts {display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 260px), 1fr)); gap: 8px}
.mecap .chart svg {width: 100%; display: block} .mecap .chart text {font-size: 10px; fill: currentColor}
.mecap video, .mecap audio {max-width: 100%; max-height: 260px; display: block; margin: 6px 0}
.mecap.camera video {width: 100%; background: #222; min-height: 160px}
.mecap.camera button {border: 1px solid currentColor; border-radius: 6px; padding: 4px 14px; margin-right: 8px}
.mecap video {min-width: min(100%, 200px)}
.mecap .wide-card {grid-column: 1 / -1}
.mecap .wide {overflow-x: auto} .mecap table {border-collapse: collapse; font-size: 13px; margin: 6px 0}
.mecap th, .mecap td {border-bottom: 1px solid var(--border-color-primary); padding: 3px 8px 3px 0; text-align: left;
  vertical-align: top}
.mecap th {white-space: nowrap; font-weight: 600}
.mecap .values {display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 6px 0; font-size: 13px}
.mecap .values dt {font-weight: 600} .mecap .values dd {margin: 0; font-variant-numeric: tabular-nums}
.mecap .badge {font-size: 12px; border: 1px solid currentColor; border-radius: 9px; padding: 0 7px; margin-right: 4px}
"""


def page(*parts: str) -> str:
    """Parts of the page with its style."""
    return f'<div class="mecap">{"".join(parts)}</div>'


def error(message: object) -> str:
    """One line that says what is wrong."""
    return page(f'<p class="error" role="alert">{_text(" ".join(str(message).split()))}</p>')


def note(message: str) -> str:
    """A line in small print."""
    return f'<p class="small">{_text(message)}</p>'


def player(data: bytes | None) -> str:
    """A clip as it can be played in the page: it is part of the page, and no file is served."""
    if not data:
        return ""
    if len(data) > _PLAYED:
        return note(f"The clip has {len(data) / 2**20:.0f} MB, too many to play it here.")
    try:
        kind, _ = parts(data)
    except MediaError as problem:
        return note(f"It cannot be played: {problem}")
    if (media_type := MEDIA_TYPES.get(kind)) is None:
        return note(f"No browser plays {kind} files.")
    return media_element(media_type, data)


# --- captions -----------------------------------------------------------------------------------------------------


def captions(said: Sequence[Said], shown: Shown | None, clip: bytes | None) -> str:
    """What checkpoints say of a clip, side by side, and what they were shown of it."""
    sides = "".join(_side(one, place) for place, one in zip(("first", "second"), said))
    seen = []
    if shown is not None and shown.waveform is not None:
        seen.append(drawing.waveform(shown.waveform, shown.seconds))
    if shown is not None and len(shown.frames):
        seen.append(drawing.frames(shown.frames))
    place = "card wide-card" if len(said) > 1 else "card"
    what = f'<div class="{place}"><h3>What the model was shown</h3>{player(clip)}{"".join(seen)}</div>'
    return page(f'<div class="sides">{sides}{what if seen or clip else ""}</div>')


def _side(said: Said, place: str) -> str:
    answer = said.answers[EVERYTHING]
    lines = [f"<h3>{_text(said.model)}</h3>"]
    if answer.error:
        return f'<div class="card {place}">{lines[0]}{error(answer.error)}</div>'
    for caption, blocks in zip(answer.captions, said.blocks[EVERYTHING], strict=True):
        lines.append(_blocks(caption.text, blocks))
        if not caption.finished:
            lines.append(note("It was cut off at the longest length."))
    if answer.note:
        lines.append(note(answer.note))
    for name in answer.differs:
        lines.append(note(_DIFFERS.get(name, f"The clip has no {name}; training clips had.")))
    if len(said.answers) > 1:
        lines.append("<h3>From one modality alone</h3>")
        lines += [_alone(name, other, said.blocks[name]) for name, other in said.answers.items() if name != EVERYTHING]
    lines.append("<h3>Where the caption lies among the emotions</h3>")
    lines.append(drawing.bars(said.labels, said.coordinates[0]))
    lines.append(note(f"log-probability {answer.captions[0].logprob:.1f}; {said.seconds:.1f} s"))
    return f'<div class="card {place}">{"".join(lines)}</div>'


_DIFFERS = {
    "transcript": "Nothing is said about its words; training prompts held them.",
    "language": "Its words are in a language that training clips were not in.",
    "longer": "It is longer than training clips.",
}


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table without the columns that are empty in all of its rows."""
    kept = [i for i in range(len(columns)) if any(row[i] != "" for row in rows)]
    head = "".join(f"<th>{_text(columns[i])}</th>" for i in kept)
    body = "".join(f"<tr>{''.join(f'<td>{_text(row[i])}</td>' for i in kept)}</tr>" for row in rows)
    return page(f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>')


def _alone(name: str, answer: Captioned, blocks: Sequence[Parsed | None]) -> str:
    if answer.error or not blocks[0] or not blocks[0].fields:
        return f"<p><b>{_text(name)}:</b> {_text(answer.error or answer.captions[0].text)}</p>"
    return f"<p><b>{_text(name)}:</b></p>{_blocks(answer.captions[0].text, blocks[0])}"


def _blocks(text: str, blocks: Parsed | None) -> str:
    """An answer by its blocks, or as it stands, with why it has none."""
    if blocks is None or not blocks.fields:
        why = note(f"does not follow its protocol: {blocks.reason}") if blocks is not None else ""
        return f'<blockquote class="said">{_text(text)}</blockquote>{why}'
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in blocks.fields.items())
    return f'<div class="wide"><table>{rows}</table></div>'


# --- rollouts -----------------------------------------------------------------------------------------------------


def charts(curves: Sequence[Curve], others: Sequence[Curve], names: Sequence[str]) -> str:
    """The curves of a run, and of a second one in the same panels."""
    legend = "".join(
        f'<span class="badge" style="color:{colour}">{_text(name)}</span>'
        for name, colour in zip(names, drawing.COLOURS)
        if name
    )
    pairs = paired(curves, others)
    panels = "".join(drawing.chart(title, pair) for title, pair in pairs[:_MOST_CHARTS])
    more = note(f"{_MOST_CHARTS} of {len(pairs)} curves are shown, of the latest stages; 'Stage' shows those of one.")
    return page(
        f"<p>{legend}</p>",
        f'<div class="charts">{panels}</div>' if panels else note("No metrics yet."),
        more if len(pairs) > _MOST_CHARTS else "",
    )


def group(found: Group, clip: str, protocol: Protocol | None, name: str = "", beside: str = "") -> str:
    """A group with its clip, references and completions, the best first.

    Marked are words that differ from the best; in the best, from the last.

    Args:
      clip: the player of its clip, or why there is none.
      protocol: how answers are read; None for free captions.
      name: of its run, where another's completions stand beside them.
      beside: these, see `completions`.
    """
    where = f"{found['stage']}, step {found['step']}: {found['utterance_id']}"
    about = [f"<h3>{_text(where)}</h3>", clip]
    for key in ("label", "transcript", "prompt"):
        about.append(f"<p><b>{key}:</b> {_text(found[key] or '–')}</p>")
    about.append("<p><b>references:</b></p>" + _quoted(found["references"]))
    place, sides = ("card wide-card", "sides pair") if beside else ("card", "sides")
    mine = completions(found, protocol, f"{name}, {found['stage']}, step {found['step']}" if beside else "", "first")
    return page(f'<div class="{sides}"><div class="{place}">{"".join(about)}</div>{mine}{beside}</div>')


def completions(found: Group, protocol: Protocol | None, title: str = "", place: str = "") -> str:
    """A card with the completions of a group.

    Args:
      title: whose they are, where another's stand beside them.
      place: "first" or "second" of two.
    """
    every, order = found["completions"], by_reward(found["completions"])
    best, last = every[order[0]]["text"], every[order[-1]]["text"]
    terms = sorted({name for completion in every for name in completion["rewards"]})
    cards = []
    for rank, i in enumerate(order[:_MOST_COMPLETIONS], start=1):
        one = every[i]
        marked = _marked(one["text"], last if rank == 1 else best)
        values = {"reward": one["reward"], "advantage": one["advantage"]}
        values |= {name: one["rewards"].get(name) for name in terms[:_MOST_TERMS]}
        pairs = "".join(f"<div><dt>{_text(name)}</dt><dd>{_value(value)}</dd></div>" for name, value in values.items())
        badges = [f"#{i + 1}", f"{len(tokenize(one['text']))} words"]
        badges += ["cut off"] * (not one["finished"]) + [f"degenerate: {one['degenerate']}"] * bool(one["degenerate"])
        parsed = None if protocol is None else protocol.parse(one["text"])
        if parsed is not None and parsed.reason:
            badges.append(f"parse failure: {parsed.reason}")
        elif one["rewards"].get(FORMAT_TERM) == 0 and parsed is None:
            badges.append("parse failure")
        cards.append(
            f'<div class="card"><p>{"".join(f"<span class=badge>{_text(badge)}</span>" for badge in badges)}</p>'
            f'<blockquote>{marked}</blockquote><dl class="values">{pairs}</dl></div>'
        )
    marks = note("Marked words differ from the best one; in the best one, from the last.")
    counts = (("completions", len(every), _MOST_COMPLETIONS), ("terms of rewards", len(terms), _MOST_TERMS))
    marks += "".join(note(f"{most} of {there} {what} are shown.") for what, there, most in counts if there > most)
    head = f"<h3>{_text(f'{title}: ' if title else '')}completions, the best first</h3>"
    return f'<div class="card{f" {place}" if title else ""}">{head}{marks}{"".join(cards)}</div>'


def _marked(text: str, other: str) -> str:
    pieces = ((_text(piece), differs) for piece, differs in differing(text, other))
    return "".join(f"<mark>{piece}</mark>" if differs else piece for piece, differs in pieces)


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


# --- data ---------------------------------------------------------------------------------------------------------


def utterance(found: Utterance) -> str:
    """A clip with its player and all that is known of it."""
    known = {"split": found.split, "speaker": found.speaker, "corpus": found.dataset, "language": found.language}
    known |= {"transcript": found.transcript, "rationale": found.rationale, "licence": found.licence}
    known |= {f"label, {modality}": label for modality, label in by_modality(found.labels)}
    known |= {"valence": None if found.valence is None else f"{found.valence:g}"}
    known |= {f"features, {name}": " × ".join(map(str, x.shape)) for name, x in found.features.items()}
    known |= {name: value for name, value in found.attributes.items()}
    captions = [f"<p><b>{_text(kind)}</b></p>" + _quoted(texts) for kind, texts in found.captions.items()]
    return page(
        f'<div class="sides"><div class="card"><h3>{_text(found.id)}</h3>'
        f"{player(found.video)}{player(found.audio)}{_pairs(known)}</div>"
        f'<div class="card"><h3>captions</h3>{"".join(captions) or note("none")}</div></div>'
    )


def about_clips(clips: Clips) -> str:
    """What the data are, and what was left out of them."""
    out = clips.left_out
    rows = "".join(f"<tr><td>{_text(id)}</td><td>{_text(reason)}</td></tr>" for id, reason in out[:500])
    more = note(f"and {len(out) - 500} more") if len(out) > 500 else ""
    table = f'<div class="wide"><table><tr><th>clip</th><th>why</th></tr>{rows}</table></div>{more}'
    return page(
        _pairs(clips.about), f"<h3>left out: {len(out)}</h3>", table if out else note("Nothing was quarantined.")
    )


def _pairs(known: Mapping[str, str | None]) -> str:
    rows = "".join(f"<tr><th>{_text(k)}</th><td>{_text(v)}</td></tr>" for k, v in known.items() if v)
    return f'<div class="wide"><table>{rows}</table></div>'


def _quoted(texts: Iterable[str]) -> str:
    return "".join(f"<blockquote>{_text(text)}</blockquote>" for text in texts)


def _text(value: object) -> str:
    return html.escape(printable(str(value), keep="\n")).replace("\n", "<br>")


def downloads(files: Mapping[str, tuple[str, str]]) -> str:
    """Links to files that are part of the page: name -> (media type, text)."""
    links = (
        f'<a download="{html.escape(name)}" href="{data_address(kind, text.encode("utf-8", "backslashreplace"))}">'
        f"{html.escape(name)}</a>"
        for name, (kind, text) in files.items()
    )
    return page(f"<p>{' · '.join(links)}</p>")
