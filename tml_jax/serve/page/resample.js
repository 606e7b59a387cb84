// Sound from one rate to another, piece by piece, by a windowed sinc: what comes out does not depend on how it was cut.

const ZEROS = 16; // crossings of the sinc on either side
const PHASES = 512; // between them the filter is interpolated
const BETA = 9; // of the Kaiser window: what would alias lies 90 dB down

function bessel(x) {
  let [sum, term] = [1, 1];
  for (let k = 1; term > 1e-12 * sum; k++) sum += term *= (x / (2 * k)) ** 2;
  return sum;
}

export class Resampler {
  constructor(from, to) {
    this.step = from / to;
    const cutoff = Math.min(1, to / from) * 0.92;
    this.half = Math.ceil(ZEROS / cutoff);
    this.taps = 2 * this.half;
    // Row p holds the weights of the samples around a time that lies p / PHASES after a sample.
    this.table = new Float32Array((PHASES + 1) * this.taps);
    for (let phase = 0; phase <= PHASES; phase++) {
      for (let tap = 0; tap < this.taps; tap++) {
        const time = tap - this.half + 1 - phase / PHASES;
        const window = 1 - (time / this.half) ** 2;
        if (window <= 0) continue; // at the very edge too, or the last phase and the first would differ
        const turn = Math.PI * cutoff * time;
        const sinc = turn === 0 ? 1 : Math.sin(turn) / turn;
        this.table[phase * this.taps + tap] = (cutoff * sinc * bessel(BETA * Math.sqrt(window))) / bessel(BETA);
      }
    }
    this.held = new Float32Array(this.half); // what earlier pieces left, silence at first
    this.at = this.half; // where in it the next sample lies
  }

  push(samples) {
    if (this.step === 1) return samples.slice();
    const held = new Float32Array(this.held.length + samples.length);
    held.set(this.held);
    held.set(samples, this.held.length);
    const count = Math.max(0, Math.ceil((held.length - this.half - this.at) / this.step));
    const out = new Float32Array(count);
    for (let n = 0; n < count; n++) {
      const at = this.at + n * this.step;
      const whole = Math.floor(at);
      const phase = (at - whole) * PHASES;
      const row = Math.floor(phase);
      const part = phase - row;
      const first = whole - this.half + 1;
      const base = row * this.taps;
      let [here, next] = [0, 0];
      for (let tap = 0; tap < this.taps; tap++) {
        const sample = held[first + tap];
        here += sample * this.table[base + tap];
        next += sample * this.table[base + this.taps + tap];
      }
      out[n] = here + part * (next - here);
    }
    this.at += count * this.step;
    const spent = Math.min(held.length, Math.max(0, Math.floor(this.at) - this.half + 1));
    this.held = held.slice(spent);
    this.at -= spent;
    return out;
  }
}
