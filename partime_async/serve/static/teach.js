// The classes: buttons to hold, bars of confidence, and the pictures kept to see what is forgotten.

const WIDTH = 32;
const HEIGHT = 24;
const SURE_MS = 3000; // to click once more when something taught is to be removed
const EXPLAINED_MS = 15000;

export class Classes {
  /** send(command) gives orders; onHold(label | null) tells what is held. */
  constructor(send, onHold) {
    this.send = send;
    this.onHold = onHold;
    this.list = document.getElementById("classes");
    this.template = document.getElementById("class-template");
    this.cards = new Map();
    this.held = null;
    this.isFrozen = false;
    this.explainedUntil = 0;
    document.getElementById("add").addEventListener("click", () => this.send({ do: "add" }));
    addEventListener("keydown", (event) => this.#key(event, true));
    addEventListener("keyup", (event) => this.#key(event, false));
    addEventListener("blur", () => this.release());
    document.addEventListener("visibilitychange", () => document.hidden && this.release());
  }

  /** Take the classes as the server has them. */
  update({ classes, frozen }) {
    this.isFrozen = frozen;
    classes.forEach((name, label) => {
      if (name === null) this.#remove(label);
      else this.#card(label, name);
    });
    const isFull = classes.every((name) => name !== null);
    document.getElementById("add").hidden = isFull;
    document.getElementById("full").hidden = !isFull;
    for (const card of this.cards.values()) card.hold.disabled = frozen;
    if (frozen) this.release();
  }

  /** Take telemetry in. */
  take(t) {
    const isKnown = t.p.some((share) => share > 0);
    const before = this.taught;
    let winner = null;
    for (const [label, card] of this.cards) {
      const share = t.p[label] ?? 0;
      const isTaught = (card.isTaught = t.on.includes(label));
      const count = t.n[label];
      card.fill.style.transform = `scaleX(${share / 100})`;
      card.bar.setAttribute("aria-valuenow", share);
      card.share.textContent = isTaught && isKnown ? `${share}%` : "–";
      card.count.textContent = count ? `${count} frame${count > 1 ? "s" : ""}` : isTaught ? "from a file" : "nothing yet";
      card.element.classList.toggle("held", t.held === label);
      if (isTaught && (winner === null || share > t.p[winner])) winner = label;
      [...card.album.children].forEach((picture, place) => (picture.dataset.mark = t.exam[label][place] ?? "-"));
      const kept = t.keep[label];
      card.album.setAttribute("aria-label", kept === null ? "No pictures kept yet" : `${kept}% of the kept pictures are still right`);
    }
    const isChoice = this.taught > 1;
    if (isChoice && before === 1) this.explainedUntil = performance.now() + EXPLAINED_MS;
    for (const [label, card] of this.cards) card.element.classList.toggle("winner", isChoice && label === winner);
    return isChoice && winner !== null ? { label: winner, name: this.cards.get(winner).name.value, share: t.p[winner] } : null;
  }

  /** How many classes were taught already. */
  get taught() {
    return [...this.cards.values()].filter((card) => card.isTaught).length;
  }

  /** Return what to do next, in words; null: all has been said. */
  nextStep(source) {
    if (this.isFrozen) return "Learning is frozen. Switch it on to teach.";
    const isCamera = source === "camera";
    if (this.held === null && performance.now() < this.explainedUntil) {
      return `Now ${isCamera ? "show the one, then the other" : "go from look to look"}: the answer follows. The outline marks what speaks for it.`;
    }
    const next = [...this.cards.values()].find((card) => !card.isTaught);
    if (!next || this.taught > 1) return null;
    const name = next.name.value;
    if (!this.taught) return `Hold ${name} for a few seconds while ${isCamera ? "you show the first thing" : "this look is on"}.`;
    return `Now ${isCamera ? "show something else" : "choose another look under the video"}, and hold ${name}.`;
  }

  /** Draw the kept pictures of one class. */
  album({ class: label, pictures }) {
    const card = this.cards.get(label);
    if (!card) return;
    card.album.replaceChildren(
      ...pictures.map((packed) => {
        const canvas = Object.assign(document.createElement("canvas"), { width: WIDTH, height: HEIGHT });
        const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
        const pixels = new ImageData(WIDTH, HEIGHT);
        for (let from = 0, to = 0; from < bytes.length; from += 3, to += 4) {
          pixels.data.set([bytes[from], bytes[from + 1], bytes[from + 2], 255], to);
        }
        canvas.getContext("2d").putImageData(pixels, 0, 0);
        const frame = document.createElement("span");
        frame.className = "kept";
        frame.append(canvas);
        return frame;
      }),
    );
  }

  press(label) {
    if (this.held === label || this.isFrozen || !this.cards.has(label)) return;
    if (!this.send({ do: "teach", class: label })) return;
    this.held = label;
    this.cards.get(label).hold.setAttribute("aria-pressed", "true");
    this.onHold({ label, name: this.cards.get(label).name.value });
  }

  release() {
    if (this.held === null) return;
    this.cards.get(this.held)?.hold.setAttribute("aria-pressed", "false");
    this.held = null;
    this.send({ do: "release" });
    this.onHold(null);
  }

  #key(event, isDown) {
    if (event.target.matches?.("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    const place = Number(event.key);
    if (!Number.isInteger(place) || place < 1 || place > 9) return;
    const label = place - 1;
    if (isDown && !event.repeat) this.press(label);
    if (!isDown && this.held === label) this.release();
  }

  #remove(label) {
    const card = this.cards.get(label);
    if (!card) return;
    if (this.held === label) this.release();
    const hadFocus = card.element.contains(document.activeElement);
    const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
    clearTimeout(card.timer);
    card.element.remove();
    this.cards.delete(label);
    // Who works by keyboard stays where they were.
    if (hadFocus) (next?.querySelector(".remove") ?? document.getElementById("add")).focus();
  }

  #card(label, name) {
    let card = this.cards.get(label);
    if (!card) {
      card = this.#build(label);
      this.cards.set(label, card);
      // In its place, and no other card is touched: one that moves loses the focus, and the finger that holds its button.
      this.list.insertBefore(card.element, [...this.list.children].find((other) => Number(other.dataset.label) > label) ?? null);
    }
    if (document.activeElement !== card.name) card.name.value = name;
    card.name.setAttribute("aria-label", `Name of class ${label + 1}`);
    card.hold.setAttribute("aria-label", `Hold to teach ${name}`);
    card.bar.setAttribute("aria-label", `Confidence in ${name}`);
    card.spoken = name;
    this.#calm(card);
  }

  #calm(card) {
    clearTimeout(card.timer);
    delete card.remove.dataset.sure;
    card.remove.textContent = "✕";
    card.remove.title = `Remove ${card.spoken}`;
    card.remove.setAttribute("aria-label", card.remove.title);
  }

  /** Ask twice, in place: what was taught is gone in one click otherwise. */
  #askToRemove(label, card, event) {
    if (event.detail > 1) return; // a double click is no second thought
    if (!card.isTaught || card.remove.dataset.sure) {
      this.#calm(card);
      this.send({ do: "remove", class: label });
      return;
    }
    card.remove.dataset.sure = "yes";
    card.remove.textContent = "Remove?";
    card.remove.setAttribute("aria-label", `Really remove ${card.spoken}?`);
    card.timer = setTimeout(() => this.#calm(card), SURE_MS);
  }

  #build(label) {
    const element = this.template.content.firstElementChild.cloneNode(true);
    const find = (selector) => element.querySelector(selector);
    element.dataset.label = label;
    const card = {
      element,
      isTaught: false,
      spoken: "",
      timer: null,
      name: find(".class-name"),
      share: find(".class-share"),
      bar: find(".bar"),
      fill: find(".bar i"),
      hold: find(".hold"),
      count: find(".hold small"),
      album: find(".album"),
      remove: find(".remove"),
    };
    find("kbd").textContent = label + 1;
    const { hold, name } = card;
    hold.setAttribute("aria-pressed", "false");
    hold.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      hold.setPointerCapture(event.pointerId);
      this.press(label);
    });
    for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) hold.addEventListener(kind, () => this.release());
    hold.addEventListener("contextmenu", (event) => event.preventDefault());
    hold.addEventListener("keydown", (event) => {
      if (event.key !== " " && event.key !== "Enter") return;
      event.preventDefault();
      if (!event.repeat) this.press(label);
    });
    hold.addEventListener("keyup", (event) => (event.key === " " || event.key === "Enter") && this.release());
    name.addEventListener("change", () => this.send({ do: "rename", class: label, name: name.value }));
    name.addEventListener("keydown", (event) => {
      if (event.key === "Escape") name.value = card.spoken;
      if (event.key === "Enter" || event.key === "Escape") name.blur();
    });
    card.remove.addEventListener("click", (event) => this.#askToRemove(label, card, event));
    return card;
  }
}
