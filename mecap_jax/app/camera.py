"""A recorder for face and voice, for Gradio's HTML component.

Gradio's own takes what the browser has encoded up to the moment when "Stop" is clicked, and lets go of the rest: a
recording without its end, or, on a busy machine, of one byte. This one waits for the browser to finish the file. Its
value is the path of the upload, which `guard` gives to the browser that sent it.
"""

from __future__ import annotations

LONGEST = 30  # seconds
TEMPLATE = f"""
<div class="mecap camera">
  <video playsinline></video>
  <button type="button">Record</button> <span role="status">Face and voice, at most {LONGEST} s.</span>
</div>
"""
SCRIPT = """
const view = element.querySelector("video"), button = element.querySelector("button");
const say = text => { element.querySelector("[role=status]").textContent = text; };
let recorder = null, timer = null;

const keep = async (stream, parts, type) => {
  clearTimeout(timer);
  stream.getTracks().forEach(track => track.stop());
  const blob = new Blob(parts, {type});
  Object.assign(view, {srcObject: null, src: URL.createObjectURL(blob), controls: true, muted: false});
  button.textContent = "Record again";
  try {
    const {path} = await upload(new File([blob], "camera." + type.split("/")[1], {type}));
    props.value = path;
    say("Recorded.");
  } catch (error) {
    say("The recording cannot be sent: " + error.message);
  }
};

const begin = async () => {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({audio: true, video: {width: 640, height: 480}});
  } catch (error) {
    return say("The camera cannot be used: " + error.message);
  }
  Object.assign(view, {srcObject: stream, controls: false, muted: true});
  view.play();
  const parts = [];
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = event => parts.push(event.data);
  recorder.onstop = () => keep(stream, parts, (recorder.mimeType || "video/webm").split(";")[0]);
  recorder.start();
  props.value = "";
  button.textContent = "Stop";
  say("Recording …");
  timer = setTimeout(() => recorder.stop(), LONGEST * 1000);
};

button.addEventListener("click", () => recorder?.state === "recording" ? recorder.stop() : begin());
""".replace("LONGEST", str(LONGEST))
