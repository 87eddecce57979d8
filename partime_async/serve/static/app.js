// The page: what is shown, and what the buttons do.

import { Charts, short } from "./charts.js";
import { Link } from "./link.js";
import { Classes } from "./teach.js";
import { Weights } from "./weights.js";

const $ = (id) => document.getElementById(id);
const CAMERA = { video: { width: { ideal: 320 }, height: { ideal: 240 }, frameRate: { ideal: 30 } }, audio: false };
const RULES = {
  pipedream: ["PipeDream", "Every gradient meets the weights that made it: exact, only a frame late."],
  partime: ["PARTIME", "A late gradient meets the newest picture: nothing is kept, and smooth streams forgive it."],
  replay: ["Replay", "The late gradient's picture goes through the weights of now once more."],
  exact: ["Exact", "An ordinary training loop: the stages wait for each other."],
};
const WORDS = {
  asking: ["Waiting for the camera", "Your browser asks whether this page may use it."],
  connecting: ["Connecting", "The video will be here in a moment."],
  reconnecting: ["Connecting again", "What was learned is safe with the server."],
  failed: ["No connection", "Check that the demo still runs where you started it."],
  refused: ["No camera", "Allow it in the browser's address bar and try again, or watch the moving scene."],
  live: ["Live", ""],
};

const link = new Link();
const charts = new Charts();
const mode = { name: "teach", source: "scene", stream: null };
const weights = new Weights((command) => link.send(command), toast, (saved, loaded) => {
  $("download").textContent = saved ?? "Save weights";
  $("upload").textContent = loaded ?? "Load weights";
});
const classes = new Classes((command) => link.send(command), (held) => {
  $("recording").hidden = held === null;
  if (held) {
    $("recording").dataset.label = held.label;
    $("recording").querySelector("span").textContent = `Learning ${held.name}`;
  }
});
let state = null;
let isStageSeen = true;

// -- connecting ---------------------------------------------------------------------------------------------------

async function start() {
  show("connecting");
  if (mode.source === "camera") {
    show("asking");
    try {
      mode.stream = await camera();
    } catch (error) {
      show("refused", refusal(error));
      return;
    }
  } else {
    stopCamera();
  }
  link.connect({ service: mode.name, stream: mode.stream, hello: { do: "watch", source: mode.source } });
}

async function camera() {
  if (mode.stream?.getVideoTracks().some((track) => track.readyState === "live")) return mode.stream;
  if (!navigator.mediaDevices) throw new DOMException("", "SecurityError");
  const stream = await navigator.mediaDevices.getUserMedia(CAMERA);
  stream.getVideoTracks()[0].addEventListener("ended", () => show("refused", "The camera has stopped. Plug it in again, or watch the moving scene."));
  return stream;
}

function refusal(error) {
  if (error.name === "NotFoundError") return "There is no camera on this machine. Plug one in and try again, or watch the moving scene.";
  if (error.name === "NotReadableError") return "Another program uses the camera. Close it and try again, or watch the moving scene.";
  if (error.name === "SecurityError") return "Browsers give cameras only to pages of this machine or of https. Watch the moving scene.";
  return WORDS.refused[1];
}

function stopCamera() {
  mode.stream?.getTracks().forEach((track) => track.stop());
  mode.stream = null;
}

function show(name, text = "") {
  const [title, words] = WORDS[name];
  const status = $("status");
  status.dataset.state = name;
  status.querySelector("span").textContent = title;
  document.body.dataset.state = name;
  $("veil").dataset.state = name;
  $("veil").hidden = name === "live";
  $("veil-title").textContent = title;
  $("veil-text").textContent = text || words;
  $("veil-retry").hidden = !["failed", "refused"].includes(name);
  $("veil-scene").hidden = !(["failed", "refused", "asking"].includes(name) && mode.source === "camera");
  if (name !== "live") {
    classes.release();
    weights.stop();
  }
  $("trouble").querySelector("span").textContent = `${title}. ${$("veil-text").textContent}`;
  $("trouble-retry").hidden = $("veil-retry").hidden;
  showTrouble();
}

/** Say it at the lower edge, too, for those who have scrolled away from the video. */
function showTrouble() {
  $("trouble").hidden = isStageSeen || ["live", "connecting", "asking"].includes(document.body.dataset.state);
}

new IntersectionObserver((entries) => {
  isStageSeen = entries.at(-1).intersectionRatio > 0.6;
  showTrouble();
}, { threshold: [0, 0.6, 1] }).observe($("screen"));

function choose({ name = mode.name, source = mode.source }) {
  const isNew = name !== mode.name;
  Object.assign(mode, { name, source });
  document.body.dataset.mode = name;
  document.body.dataset.source = source;
  for (const each of ["teach", "predict"]) {
    $(`mode-${each}`).setAttribute("aria-pressed", String(each === name));
    $(`side-${each}`).hidden = each !== name;
    $(`intro-${each}`).hidden = each !== name;
  }
  for (const each of ["scene", "camera"]) $(`source-${each}`).setAttribute("aria-pressed", String(each === source));
  $("looks").hidden = source !== "scene";
  $("panels").hidden = name !== "predict";
  $("video").classList.toggle("behind", name === "predict");
  if (isNew) {
    $("verdict").hidden = true;
    charts.clear();
    charts.showGuess(name === "predict");
  }
  try {
    localStorage.setItem("partime-mode", name);
  } catch {
    // private windows may have none: nothing is remembered then
  }
}

// -- what comes ---------------------------------------------------------------------------------------------------

link.addEventListener("state", ({ detail }) => {
  show(detail.state, detail.text);
  // Without a connection none of these does anything.
  for (const each of document.querySelectorAll(".side, .controls, .looks, #stranger")) each.inert = detail.state !== "live";
});
link.addEventListener("track", ({ detail }) => {
  $("video").srcObject = detail;
  $("video").play().catch(() => {}); // muted videos may always play; one that is replaced meanwhile says so here
});
link.addEventListener("message", ({ detail }) => {
  if (detail.type === "state") takeState(detail);
  else if (detail.type === "album") classes.album(detail);
  else if (detail.type === "weights") weights.piece(detail);
  else if (detail.type === "upload") weights.received(detail);
  else if (detail.type === "note") toast(detail.text);
  else if (detail.type === "error") {
    weights.stop();
    toast(detail.error, "error");
  }
});
link.addEventListener("telemetry", ({ detail }) => {
  if (detail.type !== "t") return;
  charts.take(detail);
  $("tile-version").textContent = detail.ver[0]?.toLocaleString("en") ?? "–";
  $("tile-drop").textContent = detail.drop.toLocaleString("en");
  $("tile-stages").textContent = detail.busy.length;
  if (mode.name === "teach" && detail.p) takeTeaching(detail);
  if (mode.name === "predict" && "heat" in detail) takeForecast(detail);
});

function takeState(said) {
  state = said;
  const learning = $("learning");
  learning.setAttribute("aria-checked", String(!said.frozen));
  learning.querySelector("span").textContent = said.frozen ? "Frozen" : "Learning";
  document.body.classList.toggle("frozen", said.frozen);
  const rule = $("rule");
  if (!rule.options.length) {
    rule.replaceChildren(...said.rules.map((name) => new Option(RULES[name]?.[0] ?? name, name)));
  }
  rule.value = said.rule;
  $("rule-hint").textContent = RULES[said.rule]?.[1] ?? "";
  $("back").disabled = !said.snapshot;
  $("tile-visitors").textContent = said.visitors;
  const looks = $("looks");
  if (looks.children.length !== said.looks.length) {
    looks.replaceChildren(...said.looks.map((name, look) => {
      const button = Object.assign(document.createElement("button"), { type: "button", className: "look", textContent: name });
      button.addEventListener("click", () => link.send({ do: "look", look }));
      return button;
    }));
  }
  [...looks.children].forEach((button, look) => button.setAttribute("aria-pressed", String(look === said.look)));
  if (said.classes) classes.update(said);
}

function takeTeaching(t) {
  const winner = classes.take(t);
  const step = classes.nextStep(mode.source);
  $("coach").hidden = step === null;
  if (step !== null) setText($("coach"), step);
  // Of one class there is nothing to get wrong.
  $("accuracy").textContent = t.acc === null || classes.taught < 2 ? "–" : `${Math.round(100 * t.acc)}%`;
  const verdict = $("verdict");
  verdict.hidden = winner === null;
  if (winner) {
    verdict.dataset.label = winner.label;
    setText(verdict.querySelector("b"), winner.name);
    verdict.querySelector("span").textContent = `${winner.share}%`;
  }
}

function takeForecast(t) {
  const ratio = t.loss !== null && t.guess ? t.loss / t.guess : null;
  $("fact-loss").textContent = t.loss === null ? "–" : short(t.loss);
  $("fact-guess").textContent = t.guess === null ? "–" : short(t.guess);
  $("fact-ratio").textContent = ratio === null ? "–" : `${Math.round(100 * ratio)}%`;
  $("meter-ratio").style.transform = `scaleX(${Math.min(1, ratio ?? 0)})`;
  $("fact-heat").textContent = t.heat === null ? "–" : `${short(t.heat)}×`;
  $("meter-heat").style.transform = `scaleX(${Math.min(1, Math.log10(Math.max(1, t.heat ?? 1)) / 2.5)})`;
  $("alarm").classList.toggle("alarming", t.alarm);
  $("stranger").disabled = t.guest;
}

// -- the three pictures of the forecast come in one video ----------------------------------------------------------

const panels = [0, 1, 2].map((place) => $(`panel-${place}`).getContext("2d", { alpha: false }));

function paint() {
  const video = $("video");
  if (mode.name === "predict" && video.videoWidth > 2 * video.videoHeight) {
    const width = video.videoWidth / 3;
    panels.forEach((panel, place) => {
      const { canvas } = panel;
      if (canvas.width !== width || canvas.height !== video.videoHeight) Object.assign(canvas, { width, height: video.videoHeight });
      panel.drawImage(video, place * width, 0, width, video.videoHeight, 0, 0, width, video.videoHeight);
    });
  }
  next();
}

function next() {
  const video = $("video");
  if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(paint);
  else requestAnimationFrame(paint);
}
next();

// -- buttons ------------------------------------------------------------------------------------------------------

for (const name of ["teach", "predict"]) {
  $(`mode-${name}`).addEventListener("click", () => {
    if (name === mode.name && link.isLive) return;
    choose({ name });
    start();
  });
}
for (const source of ["scene", "camera"]) {
  $(`source-${source}`).addEventListener("click", () => {
    if (source === mode.source && link.isLive) return;
    choose({ source });
    start();
  });
}
for (const each of ["veil-retry", "trouble-retry"]) $(each).addEventListener("click", start);
$("veil-scene").addEventListener("click", () => {
  choose({ source: "scene" });
  start();
});
$("stranger").addEventListener("click", () => link.send({ do: "stranger" }));
$("learning").addEventListener("click", toggleLearning);
$("rule").addEventListener("change", ({ target }) => link.send({ do: "rule", rule: target.value }));
$("snapshot").addEventListener("click", () => link.send({ do: "snapshot" }));
$("back").addEventListener("click", () => link.send({ do: "back" }));
$("download").addEventListener("click", () => weights.download(`partime-${mode.name}.safetensors`));
$("upload").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) weights.upload(target.files[0]);
  target.value = "";
});
$("reset").addEventListener("click", ({ currentTarget, detail }) => {
  if (detail > 1) return; // a double click is no second thought
  // Asked twice, in place: what was learned in minutes is gone in one click otherwise.
  if (currentTarget.dataset.sure) {
    link.send({ do: "reset" });
    calm(currentTarget);
  } else {
    currentTarget.dataset.sure = "yes";
    currentTarget.textContent = "Forget it all?";
    currentTarget.timer = setTimeout(() => calm(currentTarget), 3000);
  }
});
addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() === "f" && !event.repeat && !event.ctrlKey && !event.metaKey && !event.altKey
    && !event.target.matches?.("input, select, textarea")) toggleLearning();
});

function remembered() {
  try {
    return localStorage.getItem("partime-mode") === "predict" ? "predict" : "teach";
  } catch {
    return "teach";
  }
}

function calm(button) {
  clearTimeout(button.timer);
  delete button.dataset.sure;
  button.textContent = "Start over";
}

function toggleLearning() {
  if (state) link.send({ do: state.frozen ? "thaw" : "freeze" });
}

function toast(said, kind = "note") {
  const text = said.charAt(0).toUpperCase() + said.slice(1);
  const item = Object.assign(document.createElement("p"), { className: `toast ${kind}`, textContent: text });
  $("toasts").append(item);
  while ($("toasts").children.length > 3) $("toasts").firstElementChild.remove();
  setTimeout(() => item.remove(), kind === "error" ? 8000 : 3500);
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text; // an unchanged one is not read out again
}

choose({ name: remembered() });
charts.showGuess(mode.name === "predict");
start();
