// Files of weights over the control channel, piece by piece: the next one is asked for when one has come.

const PIECE = 12 * 1024;

export class Weights {
  constructor(send, toast) {
    this.send = send;
    this.toast = toast;
    this.parts = [];
  }

  /** Ask for the weights; the browser saves them when the last piece has come. */
  download() {
    this.parts = [];
    this.send({ do: "download", offset: 0 });
  }

  /** Take a piece of the weights. */
  piece({ offset, total, data }) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    this.parts.push(bytes);
    const next = offset + bytes.length;
    if (next < total) {
      this.send({ do: "download", offset: next });
      return;
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(this.parts, { type: "application/octet-stream" }));
    link.download = "partime-weights.safetensors";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    this.parts = [];
    this.toast(`Saved ${Math.round(total / 1000)} kB of weights.`);
  }

  /** Send a file of weights. */
  async upload(file) {
    this.file = new Uint8Array(await file.arrayBuffer());
    this.#next(0);
  }

  /** The server has received so many bytes. */
  received({ received, done }) {
    if (done || !this.file) this.file = null;
    else this.#next(received);
  }

  /** An error ends what is on its way. */
  stop() {
    this.file = null;
    this.parts = [];
  }

  #next(offset) {
    const part = this.file.subarray(offset, offset + PIECE);
    const text = String.fromCharCode(...part);
    this.send({ do: "upload", offset, total: this.file.length, data: btoa(text) });
  }
}
