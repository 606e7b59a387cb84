// The picture of a conversation: who made sound and said what, what was seen, what the background model did, and
// whether every step was in time; all over one axis of session time. It scrolls along with a live conversation, and
// shows a recorded one in the same way.

const COLUMN = 4; // pixels that a column of a waveform takes, with its gap
const PEAK_S = 0.02;
const ROWS = 3; // of words, one above the other
const WORD = 16; // pixels a row of words is high
const LANES = [
  { name: "you", label: "You", words: true, height: 150 },
  { name: "seen", label: "Seen", height: 58 },
  { name: "model", label: "Model", words: true, height: 150 },
  { name: "background", label: "Background", height: 62 },
  { name: "step", label: "Step", height: 62 },
];
const THUMBS = 900; // pictures that are kept
const AXIS = 24;
const OVERLAP = 0.03; // of full scale: both are heard

export class Timeline {
  constructor(canvas) {
    this.canvas = canvas;
    this.scale = 90; // pixels a second
    this.period = 0.2;
    this.clear();
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.#listen();
  }

  clear() {
    this.end = 0; // session time of the right edge while it is followed
    this.left = null; // seconds of the left edge; null: the end is followed
    this.peaks = { you: [], model: [] };
    this.words = { you: [], model: [] };
    this.turns = [];
    this.thumbs = [];
    this.tasks = [];
    this.marks = [];
    this.filmed = false;
    this.live = true;
  }

  get following() {
    return this.left === null;
  }

  // What happened: a line of a journal.
  add(line) {
    const { t, turn, type } = line;
    const at = (this.turns[turn] ??= {});
    switch (type) {
      case "session":
        this.period = line.micro_turn_s;
        break;
      case "sound":
        at.you = line.level;
        break;
      case "voice":
        at.model = line.level;
        break;
      case "frame":
        at.frames = line.count;
        this.filmed = true;
        break;
      case "silence":
        at.silence = line.ms;
        break;
      case "speak":
      case "listen":
      case "delegate":
        at.decision = type;
        break;
      case "step":
        at.ms = line.ms;
        at.missed = line.missed;
        break;
      case "heard":
        this.#word("you", t - this.period, line.text);
        break;
      case "word":
        this.#word("model", t, line.text);
        break;
      case "text":
        this.words.you.push({ t, text: `“${line.text}”`, whole: true, typed: true });
        break;
      case "instructions":
        this.marks.push({ t, text: "instructions" });
        break;
      case "error":
        this.marks.push({ t, text: line.text, bad: true });
        break;
      case "background":
        this.#task(line);
        break;
    }
    this.end = Math.max(this.end, t);
  }

  // Pieces that continue a word are put to it.
  #word(side, t, text) {
    const words = this.words[side];
    const last = words.findLast((word) => !word.typed);
    if (last && !last.whole && !/^\s/.test(text)) last.text += text;
    else if (text.trim()) words.push({ t, text: text.trimStart() });
    const word = words.findLast((one) => !one.typed);
    if (!word) return;
    word.whole = /\s$/.test(text);
    word.width = undefined;
  }

  #task({ t, task, state, text }) {
    const begun = this.tasks.find((one) => task !== null && one.task === task);
    if (state === "progress") return;
    if (state === "started") this.tasks.push({ task, from: t, to: null, question: text });
    else if (begun) Object.assign(begun, { to: t, answer: text, failed: state === "failed" });
    else this.tasks.push({ task, from: t, to: t, answer: text, failed: state === "failed" });
  }

  // Sound as it is heard: samples of both sides that follow those before.
  hear(heard, played, rate) {
    const size = Math.round(PEAK_S * rate);
    for (let at = 0; at + size <= heard.length; at += size) {
      this.peaks.you.push(peak(heard, at, at + size));
      this.peaks.model.push(peak(played, at, at + size));
    }
    this.end = Math.max(this.end, this.peaks.you.length * PEAK_S);
  }

  see(t, thumb) {
    this.thumbs.push({ t, thumb });
    if (this.thumbs.length > THUMBS) this.thumbs.shift().thumb.close();
  }

  zoom(factor) {
    const middle = this.from + this.seconds / 2;
    this.scale = Math.min(400, Math.max(12, this.scale * factor));
    if (!this.following) this.left = middle - this.seconds / 2;
    for (const words of Object.values(this.words)) for (const word of words) word.row = undefined;
    this.draw();
  }

  scroll(seconds) {
    const last = Math.max(0, this.end - this.seconds);
    const left = Math.max(0, this.from + seconds);
    this.left = left >= last ? null : left;
    this.canvas.dispatchEvent(new CustomEvent("scrolled"));
    this.draw();
  }

  follow() {
    this.left = null;
    this.canvas.dispatchEvent(new CustomEvent("scrolled"));
    this.draw();
  }

  get gutter() {
    return this.canvas.clientWidth < 640 ? 12 : 104;
  }

  get seconds() {
    return Math.max(1, (this.canvas.clientWidth - this.gutter - 12) / this.scale);
  }

  get from() {
    return this.left ?? Math.max(0, this.end - this.seconds);
  }

  #listen() {
    let dragged = null;
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      dragged = event.clientX;
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (dragged === null) return;
      this.scroll((dragged - event.clientX) / this.scale);
      dragged = event.clientX;
    });
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => (dragged = null));
    canvas.addEventListener(
      "wheel",
      (event) => {
        const along = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
        if (!along && !event.ctrlKey) return; // the page scrolls
        event.preventDefault();
        if (event.ctrlKey) this.zoom(Math.exp(-event.deltaY / 200));
        else this.scroll((event.deltaX || event.deltaY) / this.scale);
      },
      { passive: false },
    );
  }

  // `cursor`: session time of a recording's playback, or undefined.
  draw(cursor) {
    this.cursor = cursor ?? (this.live ? undefined : this.cursor);
    const { canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const seen = this.filmed || this.thumbs.length > 0;
    const lanes = LANES.filter(({ name }) => name !== "seen" || seen);
    const height = lanes.reduce((sum, lane) => sum + lane.height, AXIS);
    const width = canvas.clientWidth;
    if (!width) return;
    if (canvas.style.height !== `${height}px`) canvas.style.height = `${height}px`;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, width, height);
    const css = getComputedStyle(canvas);
    this.ink = (name) => css.getPropertyValue(`--${name}`);
    this.font = (size, weight = 400) => `${weight} ${size}px ${css.fontFamily}`;
    this.window = { from: this.from, to: this.from + this.seconds, width, height };
    this.x = (t) => this.gutter + (t - this.window.from) * this.scale;
    this.#grid(g, height);
    let top = 0;
    for (const lane of lanes) {
      g.save();
      g.beginPath();
      g.rect(this.gutter, top, width - this.gutter, lane.height);
      g.clip();
      if (lane.words) this.#voice(g, lane.name, top, lane.height);
      else if (lane.name === "seen") this.#film(g, top, lane.height);
      else if (lane.name === "background") this.#background(g, top, lane.height);
      else this.#steps(g, top, lane.height);
      g.restore();
      this.#label(g, lane, top);
      top += lane.height;
    }
    if (this.cursor !== undefined) this.#line(g, this.x(this.cursor), height - AXIS, this.ink("ink"));
  }

  #label(g, { name, label, height }, top) {
    g.textBaseline = "middle";
    g.textAlign = "left";
    g.fillStyle = this.ink(name === "you" || name === "model" ? name : "quiet");
    g.font = this.font(this.gutter > 50 ? 13 : 11, 600);
    const narrow = this.gutter < 50;
    g.fillText(label, narrow ? 12 : 4, narrow ? top + 9 : top + height * (name === "you" || name === "model" ? 0.66 : 0.5));
    if (top > 0) {
      g.fillStyle = this.ink("line");
      g.fillRect(0, top, this.window.width, 1);
    }
  }

  #grid(g, height) {
    const step = [1, 2, 5, 10, 30, 60].find((seconds) => seconds * this.scale > 56) ?? 60;
    g.font = this.font(11);
    g.textAlign = "center";
    g.textBaseline = "middle";
    for (let t = Math.ceil(this.window.from / step) * step; t <= this.window.to; t += step) {
      const x = Math.round(this.x(t));
      g.fillStyle = this.ink("line");
      g.globalAlpha = 0.6;
      g.fillRect(x, 0, 1, height - AXIS);
      g.globalAlpha = 1;
      g.fillStyle = this.ink("quiet");
      g.fillText(clock(t), x, height - AXIS / 2 + 2);
    }
  }

  #line(g, x, height, colour) {
    g.fillStyle = colour;
    g.fillRect(Math.round(x), 0, 1.5, height);
  }

  // Loudness between two times: of the sound, or where that is not known of its micro-turns.
  #loudness(side, from, to) {
    const peaks = this.peaks[side];
    if (peaks.length) {
      let most = 0;
      for (let i = Math.max(0, Math.floor(from / PEAK_S)); i < to / PEAK_S && i < peaks.length; i++)
        most = Math.max(most, peaks[i]);
      return most;
    }
    // The sound of micro-turn k is played in micro-turn k + 1.
    const turn = Math.floor((from + to) / 2 / this.period) - (side === "model" ? 1 : 0);
    return 2.2 * (this.turns[turn]?.[side] ?? 0);
  }

  #voice(g, side, top, height) {
    const middle = top + height * 0.66;
    const reach = height * 0.28;
    const wide = COLUMN / this.scale;
    const colour = this.ink(side);
    const other = side === "you" ? "model" : "you";
    if (side === "model") this.#speaking(g, middle, reach, colour);
    g.fillStyle = colour;
    g.globalAlpha = 0.35;
    g.fillRect(this.gutter, middle - 0.5, this.window.width, 1);
    g.globalAlpha = 1;
    const last = Math.min(this.window.to, this.end);
    for (let column = Math.floor(this.window.from / wide); column * wide < last; column++) {
      const loud = this.#loudness(side, column * wide, (column + 1) * wide);
      const half = reach * Math.min(1, (loud / 0.6) ** 0.6);
      if (half < 0.8) continue;
      const both = loud > OVERLAP && this.#loudness(other, column * wide, (column + 1) * wide) > OVERLAP;
      g.globalAlpha = both ? 1 : 0.78;
      g.beginPath();
      g.roundRect(this.x(column * wide), middle - half, COLUMN - 1.5, 2 * half, 1.25);
      g.fill();
    }
    g.globalAlpha = 1;
    this.#say(g, side, top, middle, colour);
  }

  // Where the model decided to speak, and where it handed a question over.
  #speaking(g, middle, reach, colour) {
    let first = Math.max(0, Math.floor(this.window.from / this.period) - 2);
    while (first > 0 && this.turns[first - 1]?.decision === "speak") first--; // a stretch is drawn whole
    for (let k = first; k < this.turns.length && k * this.period < this.window.to; k++) {
      const x = this.x((k + 1) * this.period);
      const { decision } = this.turns[k] ?? {};
      if (decision === "speak") {
        let last = k;
        while (this.turns[last + 1]?.decision === "speak") last++;
        g.globalAlpha = 0.1;
        g.fillStyle = colour;
        g.beginPath();
        g.roundRect(x, middle - reach - 3, (last - k + 1) * this.period * this.scale, 2 * reach + 6, 6);
        g.fill();
        k = last;
      } else if (decision === "delegate") {
        g.globalAlpha = 1;
        g.fillStyle = this.ink("background");
        g.beginPath();
        g.arc(x, middle, 4, 0, 2 * Math.PI);
        g.fill();
      }
    }
    g.globalAlpha = 1;
  }

  #say(g, side, top, middle, colour) {
    const words = this.words[side];
    const free = new Array(ROWS).fill(-Infinity);
    g.textAlign = "left";
    g.textBaseline = "middle";
    for (const word of words) {
      g.font = this.font(13, word.typed ? 400 : 500);
      word.width ??= g.measureText(word.text).width;
      const [from, long] = [word.t * this.scale, word.width + 8];
      if (word.row === undefined) {
        const row = free.findIndex((end) => end <= from);
        word.row = row < 0 ? free.indexOf(Math.min(...free)) : row;
      }
      free[word.row] = from + long;
      const x = this.x(word.t);
      if (x > this.window.width || x + long < this.gutter) continue;
      const y = top + 12 + (ROWS - 1 - word.row) * WORD + 4;
      g.globalAlpha = 0.35;
      g.fillStyle = colour;
      g.fillRect(x - 3, y - 6, 1, middle - y + 6);
      g.globalAlpha = 1;
      g.fillText(word.text, x, y);
    }
  }

  #film(g, top, height) {
    const high = height - 14;
    let free = -Infinity;
    for (const { t, thumb } of this.thumbs) {
      const wide = (thumb.width / thumb.height) * high;
      const x = this.x(t);
      if (x < free) continue;
      free = x + wide + 4;
      if (x > this.window.width || free < this.gutter) continue;
      g.save();
      g.beginPath();
      g.roundRect(x, top + 7, wide, high, 5);
      g.clip();
      g.drawImage(thumb, x, top + 7, wide, high);
      g.restore();
    }
    if (this.thumbs.length) return;
    this.turns.forEach((turn, k) => {
      if (!turn?.frames) return;
      g.fillStyle = this.ink("quiet");
      g.fillRect(this.x(k * this.period) + 1, top + height / 2 - 6, this.period * this.scale - 2, 12);
    });
  }

  #background(g, top, height) {
    g.textAlign = "left";
    g.textBaseline = "middle";
    g.font = this.font(12);
    for (const { from, to, question, answer, failed } of this.tasks) {
      const [x, end] = [this.x(from), this.x(to ?? this.end)];
      const colour = this.ink(failed ? "bad" : "background");
      g.fillStyle = colour;
      g.globalAlpha = 0.2;
      g.beginPath();
      g.roundRect(x, top + 8, Math.max(6, end - x), height - 16, 6);
      g.fill();
      g.globalAlpha = 1;
      g.beginPath();
      g.roundRect(x, top + 8, 3, height - 16, 1.5);
      g.fill();
      if (question) g.fillText(question, x + 9, top + height * (answer ? 0.33 : 0.5));
      g.font = this.font(12, 600);
      if (answer) g.fillText(`${failed ? "×" : "→"} ${answer}`, x + 9, top + height * (question ? 0.67 : 0.5));
      g.font = this.font(12);
    }
    for (const { t, text, bad } of this.marks) {
      g.fillStyle = this.ink(bad ? "bad" : "quiet");
      g.fillText(text, this.x(t) + 2, top + height / 2);
    }
  }

  #steps(g, top, height) {
    const limit = this.period * 1000;
    const floor = top + height - 8;
    const high = height - 20;
    const first = Math.max(0, Math.floor(this.window.from / this.period) - 2);
    for (let k = first; k < this.turns.length && k * this.period < this.window.to; k++) {
      const { ms, missed, silence } = this.turns[k] ?? {};
      if (ms === undefined) continue;
      const tall = Math.max(1.5, high * Math.min(1.15, ms / limit));
      g.fillStyle = this.ink(missed ? "bad" : "good");
      g.beginPath();
      g.roundRect(this.x((k + 1) * this.period) + 1, floor - tall, Math.max(1, this.period * this.scale - 2), tall, 1.5);
      g.fill();
      if (silence) {
        g.fillStyle = this.ink("warn");
        g.fillRect(this.x(k * this.period), floor + 3, (silence / 1000) * this.scale, 2.5);
      }
    }
    g.strokeStyle = this.ink("bad");
    g.globalAlpha = 0.55;
    g.setLineDash([4, 4]);
    g.beginPath();
    g.moveTo(this.gutter, floor - high);
    g.lineTo(this.window.width, floor - high);
    g.stroke();
    g.setLineDash([]);
    g.globalAlpha = 1;
    g.fillStyle = this.ink("quiet");
    g.font = this.font(10.5);
    g.textAlign = "right";
    g.textBaseline = "alphabetic";
    g.fillText(`${limit} ms`, this.window.width - 6, floor - high - 3);
  }
}

function peak(samples, from, to) {
  let most = 0;
  for (let i = from; i < to; i++) most = Math.max(most, Math.abs(samples[i]));
  return most;
}

export function clock(t) {
  const [minutes, seconds] = [Math.floor(t / 60), Math.floor(t % 60)];
  return `${minutes}:${String(seconds).padStart(2, "0")}`;
}
