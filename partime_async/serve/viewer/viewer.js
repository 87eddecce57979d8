// Sends the camera, shows what comes back, and says how it goes. Everything is relative: the page may live anywhere.

const $ = (id) => document.getElementById(id);
const client = (sessionStorage.partimeClient ??= crypto.randomUUID?.() ?? String(Math.random()));
const RETRY_S = [0.5, 1, 2, 4, 8];
const GATHER_MS = 2000;

let camera = null;      // MediaStream; null: stopped
let connection = null;  // {pc, control, id}
let attempts = 0;
let last = null;        // the telemetry before, for frames per second

const REFUSALS = {
  NotAllowedError: "The camera was refused: allow it beside the address, and start again",
  NotFoundError: "There is no camera on this machine",
  NotReadableError: "Another program uses the camera",
};
const WELCOME = $("hint").textContent;
const WAITING = "The video comes with the connection.";

function state(name, words) {
  $("state").dataset.state = name;
  $("state").textContent = words;
  $("hint").hidden = name === "live";
  $("hint").textContent = camera ? WAITING : WELCOME;
  $("figures").dataset.stale = name !== "live"; // they stay to be read, and are seen to be old
}

async function start() {
  if (camera) return stop();
  state("connecting", "Asking for the camera");
  try {
    if (!navigator.mediaDevices) throw new Error("This page has to be opened by https, or on the server's own machine.");
    camera = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480, frameRate: 30 } });
  } catch (error) {
    state("failed", REFUSALS[error.name] ?? error.message);
    return;
  }
  camera.getVideoTracks()[0].addEventListener("ended", () => {
    stop();
    state("failed", "The camera has stopped");
  });
  $("own").srcObject = camera;
  $("own").dataset.on = "";
  $("start").textContent = "Stop";
  attempts = 0;
  connect();
}

function stop() {
  goodbye();
  camera?.getTracks().forEach((track) => track.stop());
  camera = null;
  $("own").srcObject = $("result").srcObject = null;
  delete $("own").dataset.on;
  $("start").textContent = "Start the camera";
  state("idle", "Not connected");
}

async function connect() {
  state("connecting", attempts ? "Connecting again" : "Connecting");
  const mine = { pc: null, control: null, id: null };
  connection = mine;
  try {
    const told = await (await asked("api/services")).json();
    const [name, about] = Object.entries(told.services)[0];
    if (about.summary) $("what").textContent = about.summary;
    $("teach").hidden = !about.takes_targets;
    const pc = (mine.pc = new RTCPeerConnection({ iceServers: told.ice }));
    pc.addTrack(camera.getVideoTracks()[0], camera);
    pc.ontrack = ({ track }) => { $("result").srcObject = new MediaStream([track]); };
    pc.onconnectionstatechange = () => { if (pc.connectionState === "failed") lost(mine, "The connection was lost"); };
    mine.control = pc.createDataChannel("control");
    mine.control.onopen = () => live(mine);
    mine.control.onmessage = ({ data }) => heard(mine, JSON.parse(data));
    mine.control.onclose = () => lost(mine, "The server has left");
    pc.createDataChannel("telemetry", { ordered: false, maxRetransmits: 0 }).onmessage = ({ data }) => figures(JSON.parse(data));
    await pc.setLocalDescription();
    await gathered(pc);
    const { sdp, type } = pc.localDescription;
    const reply = await asked("api/offer", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ sdp, type, service: name, client }),
    });
    const answer = await reply.json();
    if (!reply.ok) throw new Error(answer.error);
    mine.id = answer.id;
    await pc.setRemoteDescription(answer);
  } catch (error) {
    lost(mine, error.message);
  }
}

/** Fetch, and say it in words of ours if nobody is there: each browser has its own. */
async function asked(path, options) {
  try {
    return await fetch(path, options);
  } catch {
    throw new Error("The server does not answer");
  }
}

function gathered(pc) {
  if (pc.iceGatheringState === "complete") return Promise.resolve();
  return new Promise((done) => {
    setTimeout(done, GATHER_MS);
    pc.addEventListener("icegatheringstatechange", () => { if (pc.iceGatheringState === "complete") done(); });
  });
}

function live(mine) {
  if (connection !== mine) return;
  attempts = 0;
  last = null;
  enable(true);
  state("live", "Live");
}

function lost(mine, words) {
  if (connection !== mine) return;
  connection = null;
  mine.pc?.close();
  enable(false);
  if (!camera) return;
  if (attempts >= RETRY_S.length) {
    state("failed", `${words}. Stop and start to try again`);
    return;
  }
  state("connecting", `${words}; trying again`);
  setTimeout(() => { if (camera && !connection) connect(); }, 1000 * RETRY_S[attempts++]);
}

function goodbye() {
  const mine = connection;
  connection = null;
  enable(false);
  if (!mine) return;
  if (mine.id) navigator.sendBeacon("api/bye", JSON.stringify({ id: mine.id }));
  mine.pc?.close();
}

function heard(mine, message) {
  if (message.type === "bye") lost(mine, `The server said goodbye: ${message.reason}`);
  if (message.type === "error") state("live", message.error);
}

function command(message) {
  if (connection?.control?.readyState === "open") connection.control.send(JSON.stringify(message));
}

function enable(isLive) {
  $("reset").disabled = !isLive;
  $("teach").querySelector("button").disabled = !isLive;
}

function figures(told) {
  if (told.type !== "telemetry" || !told.latency_ms) return; // of another service, or of none
  const now = performance.now();
  const rate = last ? (1000 * (told.delivered - last.told.delivered)) / (now - last.now) : null;
  last = { told, now };
  const dropped = Object.values(told.dropped).reduce((sum, count) => sum + count, 0);
  const shown = {
    "frames/s": rate === null ? "…" : rate.toFixed(1),
    "median latency": `${told.latency_ms.p50.toFixed(0)} ms`,
    "latency, 99%": `${told.latency_ms.p99.toFixed(0)} ms`,
    delivered: told.delivered,
    dropped,
    failed: told.failed,
    ...(told.loss === undefined ? {} : { "loss, lately": told.loss.toPrecision(3) }),
  };
  $("figures").replaceChildren(...Object.entries(shown).map(([name, value]) => {
    const box = document.createElement("div");
    const term = document.createElement("dt");
    const text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    box.append(term, text);
    return box;
  }));
}

$("start").addEventListener("click", start);
$("reset").addEventListener("click", () => command({ type: "reset" }));
$("teach").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("label").value;
  command(text === "" ? { type: "target" } : { type: "target", label: Number(text) });
});
addEventListener("pagehide", goodbye);
