// Files of weights over the control channel, piece by piece: the next one is asked for when one has come.

const PIECE = 12 * 1024;

export class Weights {
  /** send(command) gives orders, toast(text, kind) says something, onProgress(saved, loaded) gets words, or null. */
  constructor(send, toast, onProgress) {
    this.send = send;
    this.toast = toast;
    this.onProgress = onProgress;
    this.parts = null; // of the file that comes; null: none does
    this.file = null; // that goes; null: none does
  }

  /** Ask for the weights; the browser saves them under a name when the last piece has come. */
  download(name) {
    if (this.parts || !this.send({ do: "download", offset: 0 })) return;
    this.name = name;
    this.parts = [];
    this.#tell("Saving…");
  }

  /** Take a piece of the weights. */
  piece({ offset, total, data }) {
    if (!this.parts) return;
    this.parts.push(Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)));
    const next = offset + this.parts.at(-1).length;
    if (next < total) {
      this.send({ do: "download", offset: next });
      this.#tell(percent("Saving", next, total));
      return;
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(this.parts, { type: "application/octet-stream" }));
    link.download = this.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    this.parts = null;
    this.#tell();
    this.toast(`Saved ${Math.round(total / 1000)} kB of weights.`);
  }

  /** Send a file of weights. */
  async upload(file) {
    if (this.file) {
      this.toast("Another file is on its way. Wait until it has come.");
      return;
    }
    if (!file.size) {
      this.toast("The file is empty. Choose one that was saved here.", "error");
      return;
    }
    this.file = new Uint8Array(0); // taken: the next file has to wait for this one
    this.file = new Uint8Array(await file.arrayBuffer());
    this.#next(0);
  }

  /** The server has received so many bytes. */
  received({ received, done }) {
    if (!this.file) return;
    if (done) this.file = null;
    else this.#next(received);
    this.#tell();
  }

  /** An error ends what is on its way, and so does the end of the connection. */
  stop() {
    this.file = this.parts = null;
    this.#tell();
  }

  #next(offset) {
    this.sent = offset;
    const part = this.file.subarray(offset, offset + PIECE);
    const text = String.fromCharCode(...part);
    this.send({ do: "upload", offset, total: this.file.length, data: btoa(text) });
  }

  #tell(saved = null) {
    this.onProgress(this.parts && saved, this.file && percent("Loading", this.sent, this.file.length));
  }
}

function percent(words, done, total) {
  return `${words} ${Math.floor((100 * done) / total)}%`;
}
