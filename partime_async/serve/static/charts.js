// Live charts of the last half minute.

import uPlot from "./vendor/uplot/uPlot.esm.js";

const SPAN_S = 30;
const REDRAW_MS = 200;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** One chart: {id, series: [{label, colour, digits}], log, min, max}. */
class Chart {
  constructor(spec) {
    this.spec = spec;
    this.figure = document.getElementById(spec.id);
    this.place = this.figure.querySelector("div");
    this.legend = this.figure.querySelector("figcaption span");
    this.data = [[], ...spec.series.map(() => [])];
    this.values = spec.series.map((series) => {
      const item = document.createElement("em");
      item.className = "legend";
      item.dataset.colour = series.colour;
      const number = document.createElement("b");
      item.append(Object.assign(document.createElement("i"), {}), series.label ? `${series.label} ` : "", number);
      this.legend.append(item);
      return { item, number };
    });
    this.build();
    new ResizeObserver(() => this.resize()).observe(this.place);
  }

  build() {
    this.plot?.destroy();
    const text = colour("--faint");
    const grid = { stroke: colour("--line"), width: 1 };
    const axis = { stroke: text, font: "11px system-ui, sans-serif", grid, ticks: { show: false } };
    const { log, min, max } = this.spec;
    this.plot = new uPlot(
      {
        width: Math.max(120, this.place.clientWidth),
        height: 118,
        cursor: { show: false },
        legend: { show: false },
        padding: [8, 22, 0, 0],
        scales: {
          x: { time: false, range: (_, __, last) => [last - SPAN_S, last] },
          y: log
            ? { distr: 3, log: 10 }
            : { range: (_, low, high) => [min ?? Math.min(0, low ?? 0), Math.max(max ?? 0, 1.1 * (high ?? 1)) || 1] },
        },
        axes: [
          {
            ...axis,
            size: 22,
            splits: (u) => [20, 10, 0].map((back) => u.scales.x.max - back),
            values: () => ["20 s ago", "10 s", "now"],
          },
          { ...axis, size: 44, space: log ? 22 : 30, ...(log ? { filter: decades, grid: { ...grid, filter: decades } } : {}), values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))) },
        ],
        series: [
          {},
          ...this.spec.series.map((series) => ({ stroke: colour(series.colour), width: 1.75, points: { show: false }, spanGaps: false })),
        ],
      },
      this.data,
      this.place,
    );
    this.spec.series.forEach((series, place) => {
      this.values[place].item.firstChild.style.background = colour(series.colour);
    });
  }

  resize() {
    const width = Math.max(120, this.place.clientWidth);
    if (Math.abs(width - this.plot.width) > 1) this.plot.setSize({ width, height: 118 });
  }

  push(now, numbers) {
    const [times, ...rows] = this.data;
    times.push(now);
    rows.forEach((row, place) => {
      let number = numbers[place] ?? null;
      if (this.spec.log && number !== null) number = number > 0 ? Math.max(number, this.spec.log) : null;
      row.push(number);
    });
    while (times.length && times[0] < now - SPAN_S - 1) this.data.forEach((row) => row.shift());
    this.numbers = numbers;
  }

  draw() {
    this.plot.setData(this.data);
    // A logarithm has no 0: until something is learned there is nothing to draw.
    this.figure.classList.toggle("empty", this.data.slice(1).every((row) => row.every((number) => number === null)));
    this.values.forEach(({ number }, place) => {
      const value = this.numbers?.[place];
      number.textContent = value === null || value === undefined ? "–" : short(value);
    });
  }

  clear() {
    this.data.forEach((row) => row.splice(0));
    this.numbers = undefined;
  }
}

/** Keep every power of ten, or every other one if there are many. */
function decades(_, ticks) {
  const powers = ticks.filter((tick) => Number.isInteger(power(tick)));
  const step = powers.length > 4 ? 2 : 1;
  return ticks.map((tick) => (Number.isInteger(power(tick) / step) ? tick : null));
}

function power(tick) {
  return Math.round(1e6 * Math.log10(tick)) / 1e6;
}

/** Write a number in few characters. */
export function short(number) {
  const size = Math.abs(number);
  if (size === 0) return "0";
  if (size >= 10000 || size < 0.001) return Number(number.toPrecision(2)).toExponential().replace("e+", "e");
  if (size >= 100) return number.toFixed(0);
  if (size >= 10) return number.toFixed(1).replace(/\.0$/, "");
  return String(Number(number.toPrecision(2)));
}

export class Charts {
  constructor() {
    this.all = {
      loss: new Chart({ id: "chart-loss", log: 1e-6, series: [{ label: "", colour: "--accent" }, { label: "guess", colour: "--second" }] }),
      rate: new Chart({ id: "chart-rate", max: 35, series: [{ label: "in", colour: "--second" }, { label: "out", colour: "--accent" }] }),
      age: new Chart({ id: "chart-age", max: 60, series: [{ label: "median", colour: "--accent" }, { label: "95%", colour: "--second" }] }),
      grad: new Chart({ id: "chart-grad", log: 1e-6, series: [{ label: "stage 1", colour: "--accent" }, { label: "2", colour: "--second" }] }),
      busy: new Chart({ id: "chart-busy", max: 100, series: [{ label: "stage 1", colour: "--accent" }, { label: "2", colour: "--second" }] }),
    };
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Object.values(this.all).forEach((chart) => chart.build()));
    this.drawnAt = 0;
  }

  take(t) {
    const now = performance.now() / 1000;
    this.all.loss.push(now, [t.loss, t.guess]);
    this.all.rate.push(now, [t.in, t.out]);
    this.all.age.push(now, [t.p50, t.p95]);
    this.all.grad.push(now, t.grad);
    this.all.busy.push(now, t.busy);
    if (document.hidden || now * 1000 - this.drawnAt < REDRAW_MS) return;
    this.drawnAt = now * 1000;
    requestAnimationFrame(() => Object.values(this.all).forEach((chart) => chart.draw()));
  }

  clear() {
    Object.values(this.all).forEach((chart) => chart.clear());
    this.all.loss.values[1].item.hidden = true;
  }

  showGuess(isShown) {
    this.all.loss.values[1].item.hidden = !isShown;
  }
}
