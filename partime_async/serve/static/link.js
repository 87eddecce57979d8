// The connection: one RTCPeerConnection at a time, made anew when the path is lost, with the same client id.

const GATHER_MS = 1000; // for candidates; on one machine they are there at once
const CONNECT_MS = 12000; // until a connection that does not come about is given up
const SILENCE_MS = 3000; // without telemetry, which comes ten times a second, the connection counts as lost
const LOST_MS = 1500; // a "disconnected" often heals by itself
const ATTEMPTS = 6;
const LARGEST_BUFFER = 256 * 1024;

export class Refusal extends Error {
  constructor(text, { isFinal = false, retryMs = 0 } = {}) {
    super(text);
    this.isFinal = isFinal;
    this.retryMs = retryMs;
  }
}

function clientId() {
  let id = sessionStorage.getItem("partime-client");
  if (!id) {
    id = Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    sessionStorage.setItem("partime-client", id);
  }
  return id;
}

/**
 * Fires: "state" {state, text}, "track" {stream}, "message" (control), "telemetry", "open".
 */
export class Link extends EventTarget {
  constructor() {
    super();
    this.client = clientId();
    this.visit = null;
    this.wanted = null; // {service, stream, hello}
    this.attempt = 0;
    this.generation = 0;
    addEventListener("pagehide", () => this.#bye());
    // A page that comes back from the browser's cache has no connection any more.
    addEventListener("pageshow", (event) => event.persisted && this.wanted && this.connect(this.wanted));
    addEventListener("online", () => this.wanted && !this.isLive && this.connect(this.wanted));
    setInterval(() => this.#watch(), 500);
  }

  get isLive() {
    return this.control?.readyState === "open";
  }

  /** Connect, or connect anew to something else: {service, stream: MediaStream|null, hello: command}. */
  connect(wanted) {
    this.wanted = wanted;
    this.attempt = 0;
    this.#bye();
    this.#tell("connecting");
    return this.#try();
  }

  send(command) {
    if (!this.isLive || this.control.bufferedAmount > LARGEST_BUFFER) return false;
    this.control.send(JSON.stringify(command));
    return true;
  }

  #tell(state, text = "") {
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, text } }));
  }

  async #try() {
    const generation = ++this.generation;
    clearTimeout(this.timer);
    try {
      await this.#join(generation);
    } catch (error) {
      if (generation !== this.generation) return;
      this.#drop();
      this.#retry(error);
    }
  }

  #retry(error) {
    this.attempt += 1;
    if (error.isFinal || this.attempt >= ATTEMPTS) {
      this.#tell("failed", error.message);
      return;
    }
    this.#tell("reconnecting", error.message);
    const wait = Math.max(error.retryMs ?? 0, 400 * 2 ** this.attempt) * (0.75 + 0.5 * Math.random());
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#try(), Math.min(wait, 10000));
  }

  async #join(generation) {
    const { service, stream, hello } = this.wanted;
    const described = await ask("api/services");
    if (generation !== this.generation) return;
    const peer = new RTCPeerConnection({ iceServers: described.ice ?? [] });
    this.peer = peer;
    const track = stream?.getVideoTracks()[0];
    if (track) peer.addTransceiver(track, { direction: "sendrecv", streams: [stream] });
    else peer.addTransceiver("video", { direction: "recvonly" });
    this.control = peer.createDataChannel("control", { ordered: true });
    this.telemetry = peer.createDataChannel("telemetry", { ordered: false, maxRetransmits: 0 });
    const mine = () => generation === this.generation;
    peer.ontrack = ({ track: video }) =>
      mine() && this.dispatchEvent(new CustomEvent("track", { detail: new MediaStream([video]) }));
    this.control.onmessage = ({ data }) => mine() && this.dispatchEvent(new CustomEvent("message", { detail: JSON.parse(data) }));
    this.telemetry.onmessage = ({ data }) => {
      if (!mine()) return;
      this.heardAt = performance.now();
      this.dispatchEvent(new CustomEvent("telemetry", { detail: JSON.parse(data) }));
    };
    const lost = (text) => mine() && this.#lost(text);
    this.control.onclose = () => lost("The server has closed the connection.");
    peer.onconnectionstatechange = () => {
      clearTimeout(this.lostTimer);
      if (peer.connectionState === "failed") lost("The way to the server is lost.");
      if (peer.connectionState === "disconnected") this.lostTimer = setTimeout(() => lost("The way to the server is lost."), LOST_MS);
    };
    await peer.setLocalDescription();
    await gathered(peer);
    const answer = await ask("api/offer", {
      sdp: peer.localDescription.sdp,
      type: peer.localDescription.type,
      service,
      client: this.client,
    });
    if (!mine()) {
      sayBye(answer.id);
      peer.close();
      return;
    }
    this.visit = answer.id;
    await peer.setRemoteDescription({ sdp: answer.sdp, type: answer.type });
    await opened(this.control);
    if (!mine()) return;
    this.attempt = 0;
    this.heardAt = performance.now();
    this.send(hello);
    this.#tell("live");
    this.dispatchEvent(new Event("open"));
  }

  #lost(text) {
    this.generation += 1;
    this.#drop();
    this.#retry(new Refusal(text));
  }

  #watch() {
    // A hidden tab's timers are slow, and so is what it hears.
    if (this.state !== "live" || document.hidden) {
      this.heardAt = performance.now();
      return;
    }
    if (performance.now() - this.heardAt > SILENCE_MS) this.#lost("Nothing is heard from the server.");
  }

  #bye() {
    this.generation += 1;
    clearTimeout(this.timer);
    this.#drop();
  }

  #drop() {
    if (this.visit) sayBye(this.visit);
    this.visit = null;
    clearTimeout(this.lostTimer);
    this.peer?.close();
    this.peer = this.control = this.telemetry = null;
  }
}

function sayBye(id) {
  navigator.sendBeacon("api/bye", JSON.stringify({ id }));
}

async function ask(path, body) {
  let response;
  try {
    response = await fetch(path, body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  } catch {
    throw new Refusal("The server does not answer. Is it still running?");
  }
  if (response.ok) return response.json();
  const said = await response.json().catch(() => ({}));
  throw new Refusal(said.error ?? `The server answered ${response.status}.`, {
    isFinal: [400, 401, 403, 404, 413].includes(response.status),
    retryMs: 1000 * Number(response.headers.get("Retry-After") ?? 0),
  });
}

function gathered(peer) {
  return new Promise((resolve) => {
    if (peer.iceGatheringState === "complete") resolve();
    setTimeout(resolve, GATHER_MS);
    peer.addEventListener("icegatheringstatechange", () => peer.iceGatheringState === "complete" && resolve());
  });
}

function opened(channel) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Refusal("No connection came about. A firewall or a browser add-on may block WebRTC.")), CONNECT_MS);
    channel.onopen = () => {
      clearTimeout(timer);
      resolve();
    };
  });
}
