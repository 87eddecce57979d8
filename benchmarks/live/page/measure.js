// Sends the camera's stamped pictures and times them when they are shown again; all times are of this page's one clock.

import { Reader } from "./stamp.js";

const GATHER_MS = 2000;
const PATIENCE_MS = 20000;

const video = document.getElementById("back");
let stop = () => {};

/** Note when each picture of a track came, [number | null, time]: every one passes here, shown or not. */
function note(track, noted) {
  const reader = new Reader();
  const frames = new MediaStreamTrackProcessor({ track }).readable.getReader();
  (async () => {
    for (;;) {
      const { done, value: frame } = await frames.read();
      if (done) return;
      const at = performance.now();
      noted.push([reader.number(frame, frame.displayWidth, frame.displayHeight), at]);
      frame.close();
    }
  })();
}

/** Note each picture that is shown, and when its last packet had come: [number | null, time, time]. */
function watch(shown) {
  const reader = new Reader();
  const look = (now, about) => {
    const at = performance.now();
    shown.push([reader.number(video, video.videoWidth, video.videoHeight), at, about.receiveTime ?? at]);
    video.requestVideoFrameCallback(look);
  };
  video.requestVideoFrameCallback(look);
}

async function call(stream, decoded) {
  const peer = new RTCPeerConnection({ iceServers: [] });
  const [track] = stream.getVideoTracks();
  peer.addTransceiver(track, { direction: "sendrecv", streams: [stream] });
  peer.createDataChannel("control", { ordered: true });
  peer.createDataChannel("telemetry", { ordered: false, maxRetransmits: 0 });
  const coming = new Promise((resolve) => peer.addEventListener("track", ({ track: back }) => resolve(back)));
  await peer.setLocalDescription();
  await within(GATHER_MS, new Promise((resolve) => {
    if (peer.iceGatheringState === "complete") resolve();
    peer.addEventListener("icegatheringstatechange", () => peer.iceGatheringState === "complete" && resolve());
  })).catch(() => {});
  const { sdp, type } = peer.localDescription;
  const reply = await fetch("api/offer", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ sdp, type }),
  });
  const answer = await reply.json();
  if (!reply.ok) throw new Error(answer.error);
  await peer.setRemoteDescription({ sdp: answer.sdp, type: answer.type });
  const back = await within(PATIENCE_MS, coming);
  note(back.clone(), decoded);
  video.srcObject = new MediaStream([back]);
  await within(PATIENCE_MS, video.play());
  return peer;
}

async function counts(peer) {
  const found = {};
  for (const each of (await peer.getStats()).values()) {
    if (each.type === "inbound-rtp" || each.type === "outbound-rtp") {
      for (const [name, value] of Object.entries(each)) {
        if (typeof value === "number") found[`${each.type.split("-")[0]}.${name}`] = value;
      }
    }
  }
  return found;
}

function within(limit, promise) {
  return Promise.race([
    promise,
    new Promise((_, reject) => setTimeout(() => reject(new Error(`nothing came within ${limit} ms`)), limit)),
  ]);
}

const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));

/** Call for a while; what comes in the first moments does not count. */
window.measure = async ({ seconds, warmUp }) => {
  const stream = await navigator.mediaDevices.getUserMedia({ video: { width: 320, height: 240, frameRate: 30 }, audio: false });
  const [taken, decoded, shown] = [[], [], []];
  note(stream.getVideoTracks()[0].clone(), taken);
  const peer = await call(stream, decoded);
  watch(shown);
  stop = () => {
    peer.close();
    stream.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
  };
  await pause(1000 * warmUp);
  const before = await counts(peer);
  const begin = performance.now();
  await pause(1000 * seconds);
  const end = performance.now();
  return { begin, end, taken, decoded, shown, before, after: await counts(peer) };
};

/** End the call. */
window.hangUp = () => stop();
