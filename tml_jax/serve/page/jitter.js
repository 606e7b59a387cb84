// What the loudspeaker plays when: the model's sound on the session's clock, a little later than it could be at best,
// so that a piece which the network held up is still in time.
//
// Sound of micro-turn k belongs to session time (k + 1) micro-turns. How long before its time a micro-turn arrives is
// its slack. One that comes too late moves everything after it back by as much and a little more; when for a while
// everything came much too early, silence is shortened. So the delay follows the network, and speech is never cut, but
// where the user cuts it short.

const FIRST_MS = 80; // of slack that is aimed at
const MORE_MS = 40; // after each micro-turn that came too late
const MOST_MS = 600;
const SPARE_MS = 60; // of slack beyond the aim that is left alone
const WATCHED = 25; // micro-turns
const FADE_MS = 10; // in which sound that is cut goes to nothing

export class JitterBuffer {
  constructor(rate, microTurn) {
    this.rate = rate;
    this.microTurn = microTurn; // samples
    this.pieces = [];
    this.playhead = null; // samples of session time
    this.aim = this.#samples(FIRST_MS);
    this.slack = [];
    this.loud = -2; // the last micro-turn with sound
    this.late = -1;
    this.underruns = 0;
    this.stale = 0; // epoch
  }

  #samples(ms) {
    return Math.round((ms * this.rate) / 1000);
  }

  get slackMs() {
    return this.slack.length ? (1000 * Math.min(...this.slack)) / this.rate : 0;
  }

  // A micro-turn was told: its sound, if it makes any, comes right after this.
  turn(number) {
    const start = (number + 1) * this.microTurn;
    if (this.playhead === null) this.playhead = start - this.aim;
    let slack = start - this.playhead;
    if (slack < 0) {
      this.aim = Math.min(this.#samples(MOST_MS), this.aim + this.#samples(MORE_MS));
      this.playhead = start - this.#samples(MORE_MS);
      slack = this.#samples(MORE_MS);
      this.late = number;
      this.slack = [];
    }
    this.slack.push(slack);
    if (this.slack.length > WATCHED) this.slack.shift();
    const spare = Math.min(...this.slack) - this.aim;
    if (this.slack.length === WATCHED && spare > this.#samples(SPARE_MS) && !this.#sounds(spare)) {
      this.playhead += spare;
      this.slack = [];
    }
  }

  #sounds(samples) {
    return this.pieces.some(({ start }) => start < this.playhead + samples);
  }

  // The sound of a micro-turn that was just told.
  add(number, samples, epoch) {
    if (epoch <= this.stale) return;
    if (this.late === number && this.loud === number - 1) this.underruns++; // a listener hears a gap
    this.loud = number;
    this.pieces.push({ start: (number + 1) * this.microTurn, samples, epoch });
  }

  // The user has cut short what was said up to this epoch: nothing more of it is played. Gives session time in ms up to
  // which it was, null where all that came of it was.
  cut(epoch) {
    const fade = this.#samples(FADE_MS);
    const stale = this.pieces.filter((piece) => piece.epoch <= epoch);
    this.pieces = this.pieces.filter((piece) => !stale.includes(piece));
    this.stale = epoch;
    if (!stale.length) return null;
    const { start, samples, epoch: of } = stale[0];
    const played = this.playhead - start;
    if (played > 0) {
      const left = samples.slice(0, played + fade);
      for (let i = played; i < left.length; i++) left[i] *= 1 - (i - played + 1) / fade;
      this.pieces.unshift({ start, samples: left, epoch: of });
    }
    return Math.round((1000 * Math.max(start, this.playhead)) / this.rate);
  }

  // The next `count` samples; where there is nothing to play, silence.
  pull(count) {
    const out = new Float32Array(count);
    if (this.playhead === null) return out;
    const [from, to] = [this.playhead, this.playhead + count];
    for (const { start, samples } of this.pieces) {
      const first = Math.max(from, start);
      const last = Math.min(to, start + samples.length);
      if (first < last) out.set(samples.subarray(first - start, last - start), first - from);
    }
    this.playhead = to;
    while (this.pieces.length && this.pieces[0].start + this.pieces[0].samples.length <= to) this.pieces.shift();
    return out;
  }
}
