// Reads the number in a picture: black and white blocks over its top, as stamp.py writes them.

const COLUMNS = 20;
const ROWS = 3;
const BITS = 48; // number and checksum, 32 and 16 bits, the lowest byte first, the highest bit of a byte first
const SAMPLES = 4; // pixels across a block in the copy that is read; the inner half of them counts

export const STAMP = { width: COLUMNS * SAMPLES, height: ROWS * SAMPLES, share: (ROWS * 16) / 240 };

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  let rest = byte;
  for (let bit = 0; bit < 8; bit += 1) rest = rest & 1 ? (rest >>> 1) ^ 0xedb88320 : rest >>> 1;
  return rest >>> 0;
});

function crc32(bytes) {
  let rest = 0xffffffff;
  for (const byte of bytes) rest = CRC[(rest ^ byte) & 255] ^ (rest >>> 8);
  return ~rest >>> 0;
}

/** Return the number in RGBA pixels of STAMP's size; null: the checksum does not fit. */
export function read(pixels) {
  const bytes = new Uint8Array(BITS / 8);
  for (let bit = 0; bit < BITS; bit += 1) {
    const left = (bit % COLUMNS) * SAMPLES;
    const top = Math.floor(bit / COLUMNS) * SAMPLES;
    let sum = 0;
    for (let y = 1; y < SAMPLES - 1; y += 1) {
      for (let x = 1; x < SAMPLES - 1; x += 1) sum += pixels[4 * ((top + y) * STAMP.width + left + x) + 1];
    }
    if (sum > 128 * (SAMPLES - 2) ** 2) bytes[bit >> 3] |= 128 >> (bit & 7);
  }
  const view = new DataView(bytes.buffer);
  return (crc32(bytes.subarray(0, 4)) & 0xffff) === view.getUint16(4, true) ? view.getUint32(0, true) : null;
}

/** Draws the stamped part of pictures small, and reads it. */
export class Reader {
  constructor() {
    this.canvas = new OffscreenCanvas(STAMP.width, STAMP.height);
    this.context = this.canvas.getContext("2d", { willReadFrequently: true, alpha: false });
  }

  /** Return the number in a video element or a VideoFrame of this size; null: none can be read. */
  number(picture, width, height) {
    this.context.drawImage(picture, 0, 0, width, height * STAMP.share, 0, 0, STAMP.width, STAMP.height);
    return read(this.context.getImageData(0, 0, STAMP.width, STAMP.height).data);
  }
}
