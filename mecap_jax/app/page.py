"""The page itself, in Gradio: what stands where, and which method of `Site` answers. Nothing is computed here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from mecap_jax.app import rendering
from mecap_jax.app.camera import SCRIPT, TEMPLATE
from mecap_jax.app.captions import Sampling
from mecap_jax.app.clips import labels_of
from mecap_jax.app.guard import UPLOADS_KEPT
from mecap_jax.app.rollouts import KEEPS, ORDERS
from mecap_jax.app.site import CLIP_COLUMNS, GROUP_COLUMNS, MOST_FILES, SHOWN_ERRORS, STEP_COLUMNS, Site, chosen_clip
from mecap_jax.captioning import SUFFIXES
from mecap_jax.data.utterance import SPLITS

TITLE = "mecap_jax"
_WAITING = 32  # calls that may wait
_LOOK_EVERY = 4.0  # seconds between two looks at a run that trains
ALL = "all"
_CHOOSE = "Choose a row to open it"
_FILE, _MICROPHONE, _CAMERA, _EXAMPLE, _ID = "file", "microphone", "camera", "example", "features"
_SENT = (_FILE, _MICROPHONE, _CAMERA)  # what the browser uploads
# Fonts that every machine has: none is fetched.
_FONTS = {"font": ["ui-sans-serif", "system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
_CSS = rendering.CSS + "\n.gradio-container {max-width: 1280px !important} footer {display: none !important}"


def build(site: Site, uploads: Path) -> gr.Blocks:
    """The page; `launch_options` go with it. Recordings are in the directory `uploads`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=UPLOADS_KEPT) as page:
        with gr.Tab("Caption"):
            _caption_tab(site, uploads)
        with gr.Tab("Rollouts"):
            _rollouts_tab(site, page)
        with gr.Tab("Data"):
            _data_tab(site, page)
    page.queue(max_size=_WAITING, api_open=False, default_concurrency_limit=4)
    return page


def launch_options() -> dict[str, Any]:
    """What `launch` takes so that nothing is fetched from elsewhere and nothing is told to anybody."""
    return {
        "theme": gr.themes.Default(**_FONTS),
        "css": _CSS,
        "share": False,
        "ssr_mode": False,
        "mcp_server": False,
        "num_workers": 0,  # whatever GRADIO_NUM_WORKERS says: those would serve files without the guard
        "enable_monitoring": False,
        "run_history": False,
        "footer_links": [],
        "allowed_paths": [],
        "quiet": True,
    }


def _html(name: str) -> gr.HTML:
    return gr.HTML(elem_id=name, apply_default_css=False)


def _shown(function: Callable) -> Callable:
    """The same with an error as one line in the last of its outputs; the others are left as they are."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except SHOWN_ERRORS as error:
            outputs = wrapped.outputs
            return rendering.error(error) if outputs == 1 else (*[gr.skip()] * (outputs - 1), rendering.error(error))

    wrapped.outputs = 1
    return wrapped


def _on(event: Callable, function: Callable, inputs: list, outputs: list, **options) -> Any:
    """Joins an event and what answers it; calls are for the page alone."""
    answer = _shown(function)
    answer.outputs = len(outputs)
    return event(answer, inputs, outputs, api_visibility="private", **options)


def _follow(event: Callable, function: Callable, inputs: list, outputs: list, **options) -> Any:
    """The same for what is typed and chosen: while one answer is under way the latest choice waits for its turn."""
    return _on(event, function, inputs, outputs, trigger_mode="always_last", **options)


# --- captions ---------------------------------------------------------------------------------------------------------


def _caption_tab(site: Site, uploads: Path) -> None:
    names = site.checkpoint_names()
    reads_media = site.models[names[0]].reads_media
    sources = [_FILE, _MICROPHONE, _CAMERA, _EXAMPLE] if reads_media else [_ID]
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            checkpoint = gr.Dropdown(names, value=names[0], label="Checkpoint", elem_id="checkpoint")
            other = gr.Dropdown(["", *names], value="", label="Compare with", elem_id="other")
            source = gr.Radio(sources, value=sources[0], label="Clip from", elem_id="source")
            file = gr.File(label="Sound or video", file_types=list(SUFFIXES), visible=reads_media, elem_id="file")
            microphone = gr.Audio(
                sources=["microphone"],
                type="filepath",
                label="Your voice",
                editable=False,
                visible=False,
                elem_id="mic",
            )
            recorder = {"html_template": TEMPLATE, "js_on_load": SCRIPT, "apply_default_css": False}
            camera = gr.HTML("", label="Your face and voice", visible=False, elem_id="camera", **recorder)
            examples = site.examples() if reads_media else []
            example = gr.Dropdown(examples, label="Example", visible=False, elem_id="example")
            clip_id = gr.Textbox(label="Id of precomputed features", visible=not reads_media, elem_id="clip-id")
            transcript = gr.Textbox(label="What is said (may stay empty)", max_length=2000, elem_id="transcript")
            with gr.Accordion("Sampling", open=False):
                sampling = _sampling()
            go = gr.Button("Caption", variant="primary", elem_id="go")
        with gr.Column(scale=3, min_width=300):
            answer = _html("answer")

    def switch(chosen):
        return [gr.update(visible=chosen == name) for name in (_FILE, _MICROPHONE, _CAMERA, _EXAMPLE)]

    source.change(switch, source, [file, microphone, camera, example], api_visibility="private", show_progress="hidden")

    def caption(name, second, chosen, *rest):
        *clips, said, samples, temperature, longest, seed = rest
        known = {key: value for key, value in zip((*_SENT, _EXAMPLE, _ID), clips) if key in sources}
        clip = chosen_clip(chosen, known, _SENT, uploads)
        names = [name, *([second] if second else [])]
        settings = _settings(samples, temperature, longest, seed)
        if chosen != _EXAMPLE:
            return site.caption(names, clip, said, settings, is_id=chosen == _ID)
        with site.example(clip) as path:
            return site.caption(names, path, said, settings)

    inputs = [checkpoint, other, source, file, microphone, camera, example, clip_id, transcript, *sampling]
    _on(go.click, caption, inputs, [answer], concurrency_id="device", concurrency_limit=1)
    if reads_media:
        with gr.Accordion(f"Many files (at most {MOST_FILES})", open=False):
            _many_files(site, checkpoint, sampling)


def _sampling() -> list:
    return [
        gr.Slider(1, 8, value=1, step=1, label="Captions", elem_id="samples"),
        gr.Slider(0, 2, value=0, step=0.1, label="Temperature (0: the likeliest words)", elem_id="temperature"),
        gr.Slider(0, 256, value=0, step=1, label="Longest caption in tokens (0: as trained)", elem_id="longest"),
        gr.Number(0, precision=0, minimum=0, maximum=2**31, label="Seed", elem_id="seed"),
    ]


def _settings(samples: float, temperature: float, longest: float, seed: float | None) -> Sampling:
    """What was chosen; a seed that somebody has emptied is 0."""
    return Sampling(int(samples), float(temperature), int(longest), int(seed or 0))


def _many_files(site: Site, checkpoint: gr.Dropdown, sampling: list) -> None:
    files = gr.File(file_count="multiple", file_types=list(SUFFIXES), label="Files", elem_id="files")
    go = gr.Button("Caption all", elem_id="go-all")
    table = _html("captions")
    links = _html("links")

    def caption_all(name, clips, samples, temperature, longest, seed, progress=gr.Progress()):  # noqa: B008
        def told(done, total):
            progress((done, total), desc="captions")

        settings = _settings(samples, temperature, longest, seed)
        return site.caption_files(name, clips or [], settings, told)

    _on(
        go.click,
        caption_all,
        [checkpoint, files, *sampling],
        [table, links],
        concurrency_id="device",
        concurrency_limit=1,
    )


# --- rollouts ---------------------------------------------------------------------------------------------------------


def _rollouts_tab(site: Site, page: gr.Blocks) -> None:
    runs = site.run_names()
    with gr.Row():
        run = gr.Dropdown(
            runs, value=None, label="Run", allow_custom_value=True, info="a directory below --runs", elem_id="run"
        )
        other = gr.Dropdown(["", *runs], value="", label="Beside it", allow_custom_value=True, elem_id="other-run")
        follow = gr.Checkbox(False, label="Follow while it trains", elem_id="follow")
    state = _html("state")
    with gr.Accordion("Curves", open=True):
        curves = _html("curves")
    with gr.Row():
        view = gr.Radio(["groups", "steps"], value="groups", label="Rows", elem_id="view")
        order = gr.Dropdown(list(ORDERS), label="Order", min_width=200, elem_id="order")
        keep = gr.Dropdown(list(KEEPS), label="Show", min_width=200, elem_id="keep")
        stage = gr.Dropdown([ALL], value=ALL, label="Stage", elem_id="stage")
        label = gr.Dropdown([ALL], value=ALL, label="Label", elem_id="label")
    with gr.Row():
        clip = gr.Textbox(label="Clip", elem_id="clip")
        first = gr.Number(0, precision=0, minimum=0, label="From step", elem_id="first")
        last = gr.Number(0, precision=0, minimum=0, label="To step (0: the last)", elem_id="last")
        number = gr.Number(1, precision=0, minimum=1, label="Page", elem_id="page")
    table = gr.Dataframe(headers=list(GROUP_COLUMNS), interactive=False, label=_CHOOSE, elem_id="rows")
    count = _html("count")
    group = _html("group")
    timer = gr.Timer(_LOOK_EVERY, active=False)
    filters = [view, order, keep, stage, label, clip, first, last, number]

    def rows(name, view, order, keep, stage, label, clip, first, last, number):
        if not name:
            return gr.skip(), ""
        wanted = {
            "order": order,
            "keep": keep,
            "stage": _chosen(stage),
            "label": _chosen(label),
            "clip": (clip or "").strip(),
            "first": int(first or 0),
            "last": int(last or 0) or None,
        }
        found, said = (site.groups if view == "groups" else site.steps)(name, number, **wanted)
        headers = list(GROUP_COLUMNS if view == "groups" else STEP_COLUMNS)
        return gr.update(value={"headers": headers, "data": found}), rendering.page(rendering.note(said))

    def opened(name, second):
        """Of a run that was chosen: which stages and labels there are."""
        if not name:
            return gr.skip(), gr.skip(), gr.skip(), "", ""
        found = site.run(name)
        stages = dict.fromkeys([*(row.stage for row in found.rollouts.rows), *found.metrics.stages()])
        labels = sorted({row.label for row in found.rollouts.rows} - {""})
        choices = [gr.update(choices=[ALL, *known], value=ALL) for known in (stages, labels)]
        return 1, *choices, "", looked(name, second)

    def looked(name, second):
        state = "".join(rendering.note(line) for line in site.run(name).state.splitlines())
        if second:
            state += "".join(rendering.note(line) for line in site.run(second).state.splitlines())
        return rendering.page(state)

    def drawn(name, second, stage):
        return site.curves(name, second, _chosen(stage)) if name else ""

    def turned(on):
        return gr.update(active=on)

    def show(name, second, view, order, keep, label, clip, event: gr.SelectData):
        """A group opens; of a step, its groups are listed."""
        if view == "groups":
            return *[gr.skip()] * 7, site.group(name, int(event.row_value[0]), second)
        step, of_stage = int(event.row_value[0]), str(event.row_value[1])
        listed, said = rows(name, "groups", order, keep, of_stage, label, clip, step, step, 1)
        return "groups", of_stage, step, step, 1, listed, said, ""

    for chosen in (run, other):
        event = _on(chosen.change, opened, [run, other], [number, stage, label, group, state], show_progress="hidden")
        event = _on(event.then, rows, [run, *filters], [table, count], show_progress="minimal")
        _on(event.then, drawn, [run, other, stage], [curves], show_progress="minimal")
    for changed in filters:
        _follow(changed.input, rows, [run, *filters], [table, count], show_progress="hidden")
    _follow(stage.input, drawn, [run, other, stage], [curves], show_progress="hidden")
    opened_row = [view, stage, first, last, number, table, count, group]
    _follow(table.select, show, [run, other, view, order, keep, label, clip], opened_row, show_progress="minimal")
    follow.change(turned, follow, timer, api_visibility="private", show_progress="hidden")
    tick = _on(timer.tick, lambda name, second: looked(name, second) if name else "", [run, other], [state],
               show_progress="hidden")  # fmt: skip
    tick = _on(tick.then, rows, [run, *filters], [table, count], show_progress="hidden")
    _on(tick.then, drawn, [run, other, stage], [curves], show_progress="hidden")

    def listed():
        names = site.run_names()
        return gr.update(choices=names, value=names[0] if names else None), gr.update(choices=["", *names])

    page.load(listed, None, [run, other], api_visibility="private", show_progress="hidden")


# --- data -------------------------------------------------------------------------------------------------------------


def _data_tab(site: Site, page: gr.Blocks) -> None:
    names = site.data_names()
    with gr.Row():
        data = gr.Dropdown(
            names, value=None, label="Data", allow_custom_value=True, info="a directory below --data", elem_id="data"
        )
        split = gr.Dropdown([ALL, *SPLITS], value=ALL, label="Split", elem_id="split")
        label = gr.Dropdown([ALL], value=ALL, label="Label of any modality", elem_id="data-label")
    with gr.Row():
        words = gr.Textbox(label="Words in id, transcript or captions", elem_id="words")
        disagree = gr.Checkbox(False, label="Only where modalities disagree", elem_id="disagree")
        number = gr.Number(1, precision=0, minimum=1, label="Page", elem_id="data-page")
    table = gr.Dataframe(headers=list(CLIP_COLUMNS), interactive=False, label=_CHOOSE, elem_id="clips")
    count = _html("clip-count")
    clip = _html("clip-card")
    with gr.Accordion("What the data are, and what was left out", open=True):
        about = _html("about")

    def opened(name):
        if not name:
            return gr.skip(), gr.skip(), "", ""
        clips, shown = site.about_data(name)
        return 1, gr.update(choices=[ALL, *labels_of(clips.rows)], value=ALL), "", shown

    def rows(name, split, label, words, disagree, number):
        if not name:
            return gr.skip(), ""
        wanted = {"split": _chosen(split), "label": _chosen(label), "words": words or "", "disagree": disagree}
        found, said = site.clips(name, number, **wanted)
        return gr.update(value={"headers": list(CLIP_COLUMNS), "data": found}), rendering.page(rendering.note(said))

    def show(name, event: gr.SelectData):
        return site.clip(name, int(event.row_value[0]))

    filters = [data, split, label, words, disagree, number]
    event = _on(data.change, opened, [data], [number, label, clip, about], show_progress="minimal")
    _on(event.then, rows, filters, [table, count], show_progress="minimal")
    for changed in (split, label, words, disagree, number):
        _follow(changed.input, rows, filters, [table, count], show_progress="hidden")
    _follow(table.select, show, [data], [clip], show_progress="minimal")

    def listed():
        found = site.data_names()
        return gr.update(choices=found, value=found[0] if found else None)

    page.load(listed, None, [data], api_visibility="private", show_progress="hidden")


def _chosen(value: str | None) -> str:
    return "" if value in (None, ALL) else value
