// The page: what its buttons do, and what it shows.

import { Camera } from "./camera.js";
import { ask, Conversation, Trouble } from "./conversation.js";
import { Player } from "./player.js";
import { Recording } from "./recording.js";
import { fromPcm, Sound, toPcm } from "./sound.js";
import { clock, Timeline } from "./timeline.js";
import { Transcript } from "./transcript.js";
import { Codec } from "./wire.js";

const FRAMES_A_SECOND = 5;
const THUMBS_A_SECOND = 1;
const DRAWN_A_SECOND = 30;
const STEPS = 1500; // whose times are counted: five minutes
const FINISHES = "It finishes what it is saying";
const $ = (id) => document.getElementById(id);
const timeline = new Timeline($("timeline"));
const transcript = new Transcript($("transcript"));
const player = new Player({ timeline, transcript, button: $("play"), seek: $("seek"), place: $("place") });
let server = null; // what it says of itself, and its protocol
let live = null; // the conversation that goes on
let camera = null;
let recording = null;

// What is shown.

function show(state, sentence) {
  $("status").dataset.state = state;
  $("status").textContent = sentence;
}

function complain(trouble, { withoutMicrophone = false } = {}) {
  $("trouble").hidden = false;
  $("trouble").querySelector("p").textContent = trouble.message;
  $("deaf").hidden = !withoutMicrophone;
  show("bad", "Not connected");
}

function number(name, value, bad = false) {
  const place = document.querySelector(`[data-of="${name}"]`);
  place.textContent = value;
  place.dataset.bad = bad;
}

function buttons() {
  const talking = live?.ready && !live.closing;
  $("start").dataset.live = live !== null;
  $("start").querySelector("span").textContent = live === null ? "Start talking" : live.closing ? "Hang up" : "Stop";
  $("mute").disabled = !talking || !live.microphone;
  for (const id of ["text", "send"]) $(id).disabled = !talking;
  for (const id of ["save-wav", "save-jsonl"]) $(id).disabled = recording === null || live !== null;
  $("microphone").disabled = $("instructions").disabled = $("open").disabled = live !== null;
}

function percentile(values, share) {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

// The conversation.

const MICROPHONE = {
  NotAllowedError: "The microphone may not be used: allow it for this page in the browser's settings.",
  NotFoundError: "There is no microphone.",
  NotReadableError: "The microphone cannot be opened: another program may have it.",
};

async function start(microphone = $("microphone").checked) {
  $("trouble").hidden = true;
  if (microphone && !navigator.mediaDevices) {
    const sentence = "Browsers give the microphone only to pages that come over https, or from this machine.";
    return complain(new Trouble(sentence), { withoutMicrophone: true });
  }
  const { sample_rate: rate, micro_turn_ms: periodMs } = server.info.stream;
  live = { microphone, closing: false, ready: false, begun: false, steps: [], missed: 0, silence: 0, sent: 0 };
  const mine = live;
  player.close();
  buttons();
  show("busy", microphone ? "Asking for the microphone" : "Connecting");
  try {
    const opened = await Sound.open({
      microphone,
      rate,
      microTurn: (rate * periodMs) / 1000,
      onBlock: (heard, played) => mine.begun && !mine.paused && hear(mine, heard, played, rate),
      onState: ({ underruns, slackMs, played }) => {
        if (played) return mine.talk.played(played);
        number("underruns", underruns, underruns > 0);
        number("slack", `${Math.round(slackMs)} ms`);
      },
    });
    if (mine !== live) return void opened.close();
    mine.sound = opened;
    number("rate", `${(mine.sound.rate / 1000).toFixed(1)} kHz`);
  } catch (error) {
    if (mine !== live) return;
    live = null;
    buttons();
    const sentence = MICROPHONE[error.name] ?? `The sound cannot be opened: ${error.message}`;
    return complain(new Trouble(sentence), { withoutMicrophone: microphone });
  }
  mine.talk = new Conversation(server.codec, {
    message: (kind, event) => take(mine, kind, event),
    // The session's time stands still until it is gone on with.
    lost: () => pause(mine, true),
    back: () => pause(mine, false),
    over: (trouble) => over(mine, trouble),
  });
  const instructions = $("instructions").value.trim();
  const config = { instructions, sends_audio: microphone, sends_video: true, wants_audio: true, seed: 0 };
  show("busy", "Connecting");
  try {
    begin(mine, await mine.talk.open({ ...config, sample_rate: rate, channels: 1, encoding: 1 }, key()), instructions);
  } catch (error) {
    over(mine, error);
  }
}

function begin(mine, { session_id: sessionId, stream, startAt }, instructions) {
  const { sample_rate: rate, micro_turn_ms: periodMs } = stream;
  recording = new Recording({ sessionId, seed: 0, period: periodMs / 1000, rate, hasAudio: mine.microphone });
  mine.ready = true;
  timeline.clear();
  transcript.clear();
  $("empty").hidden = true;
  const lines = [...recording.lines];
  if (instructions) lines.push(recording.tell("instructions", instructions));
  lines.forEach(draw);
  setTimeout(() => (mine.begun = true), startAt - performance.now());
  mine.pictures = setInterval(() => see(mine), 1000 / FRAMES_A_SECOND);
  listening(mine);
  buttons();
  if (!mine.microphone) $("text").focus();
  animate(mine);
}

function pause(mine, paused) {
  mine.paused = paused;
  if (paused) show("busy", "Connecting again");
  else listening(mine);
}

function listening(mine) {
  if (mine.closing) show("busy", FINISHES);
  else show("live", mine.sound.muted ? "Muted" : mine.microphone ? "Listening" : "Connected");
}

function animate(mine, last = 0) {
  requestAnimationFrame((now) => {
    if (mine !== live) return;
    const due = now - last >= 1000 / DRAWN_A_SECOND - 4;
    if (due) timeline.draw();
    animate(mine, due ? now : last);
  });
}

function draw(line) {
  timeline.add(line);
  transcript.add(line);
}

function hear(mine, heard, played, rate) {
  if (mine.closing) heard.fill(0);
  else if (mine.microphone) mine.talk.audio(toPcm(heard));
  recording.hear(heard, played);
  timeline.hear(heard, played, rate);
  mine.sent += heard.length / rate;
}

async function see(mine) {
  if (!camera || mine.closing || mine.paused) return;
  const taken = await camera.take();
  if (!taken || mine !== live || mine.closing || !mine.talk.frame(taken.jpeg)) return void taken?.thumb.close();
  const due = mine.sent - (mine.lastThumb ?? -Infinity) >= 1 / THUMBS_A_SECOND - 0.05;
  if (!due) return void taken.thumb.close();
  mine.lastThumb = mine.sent;
  timeline.see(mine.sent, taken.thumb);
}

function take(mine, kind, event) {
  if (kind === "started") return;
  if (kind === "audio") event.samples = fromPcm(event.pcm);
  for (const line of recording.take({ [kind]: event }, server.codec.enums)) draw(line);
  if (kind === "audio") mine.sound.play(event.turn, event.samples, event.epoch);
  if (kind !== "turn") return;
  mine.sound.turn(event.turn);
  if (event.yielded) mine.sound.cut(event.yielded);
  mine.steps.push(event.step_ms);
  if (mine.steps.length > STEPS) mine.steps.shift();
  mine.missed += event.deadline_missed;
  mine.silence += event.silence_ms;
  const time = (event.turn + 1) * recording.period;
  number("time", clock(time));
  if (event.turn % 5 === 0) {
    number("p50", `${Math.round(percentile(mine.steps, 0.5))} ms`);
    number("p99", `${Math.round(percentile(mine.steps, 0.99))} ms`);
  }
  number("missed", mine.missed, mine.missed > 0);
  number("silence", `${mine.silence} ms`, mine.silence > 0);
}

function stop() {
  if (!live) return;
  if (live.closing || !live.ready) {
    if (live.talk) live.talk.hangUp();
    if (!live.talk?.socket) over(live, null);
    return;
  }
  live.closing = true;
  live.sound.deafen();
  live.talk.close();
  show("busy", FINISHES);
  buttons();
}

function over(mine, trouble) {
  if (mine !== live) return;
  live = null;
  clearInterval(mine.pictures);
  mine.sound?.deafen();
  setTimeout(() => mine.sound?.close(), 400); // what was said last is still in the loudspeaker
  if (trouble && mine.ready) draw(recording.fail(trouble.message));
  $("mute").setAttribute("aria-pressed", "false");
  buttons();
  show("idle", recording ? "Ended" : "Ready");
  if (trouble) complain(trouble);
  if (KEY_ERRORS.has(trouble?.code)) askKey();
  if (mine.ready) player.open(recording.lines, { soundUrl: URL.createObjectURL(recording.wav()), keep: true });
  $("replay").hidden = !mine.ready;
}

// What the user does.

function mute() {
  if (!live?.sound) return;
  live.sound.muted = !live.sound.muted;
  $("mute").setAttribute("aria-pressed", live.sound.muted);
  listening(live);
}

const CAMERA = {
  NotAllowedError: "The camera may not be used: allow it for this page.",
  NotFoundError: "There is no camera.",
  NotReadableError: "The camera cannot be opened: another program may have it.",
};

async function toggleCamera() {
  if (camera) {
    camera.close();
    camera = null;
  } else {
    try {
      camera = await Camera.open($("view"));
    } catch (error) {
      complain(new Trouble(CAMERA[error.name] ?? `The camera cannot be opened: ${error.message}`));
      if (live?.ready) listening(live);
    }
  }
  $("view").hidden = camera === null;
  $("camera").setAttribute("aria-pressed", camera !== null);
}

function send(event) {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || !live?.ready || live.closing) return;
  const kind = $("kind").value;
  if (live.paused && kind !== "text") return; // it is not sent again
  if (kind === "text") live.talk.say(text);
  else live.talk.context(text, kind === "result");
  // A result comes back as an event of the server.
  if (kind !== "result") draw(recording.tell(kind, text));
  $("text").value = "";
}

function save(blob, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${recording.sessionId}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function openFiles(files) {
  const find = (ending) => [...files].find(({ name }) => name.toLowerCase().endsWith(ending));
  const [journal, wav] = [find(".jsonl"), find(".wav")];
  try {
    if (!journal) throw new Trouble("Choose a session's timeline (.jsonl), and its sound (.wav) with it if you have it.");
    $("trouble").hidden = true;
    await player.load(await journal.text(), wav);
    $("empty").hidden = true;
    $("replay").hidden = false;
    show("idle", `Recording ${journal.name}`);
  } catch (error) {
    complain(error);
  }
}

// Keys.

const KEY_ERRORS = new Set(["missing_authorization", "invalid_api_key"]);
const key = () => sessionStorage.getItem("key") ?? "";

function askKey() {
  sessionStorage.removeItem("key");
  $("ask-key").hidden = false;
  $("key").focus();
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest("input:not([type=checkbox]), textarea, select");
  if (event.key === "Escape" && typing) return event.target.blur();
  if (typing) return;
  const onButton = event.target.closest("button, summary, a, label, input");
  const span = timeline.seconds / 5;
  const does = {
    s: () => (live ? stop() : $("start").click()),
    m: mute,
    c: toggleCamera,
    t: () => $("text").focus(),
    ArrowLeft: () => timeline.scroll(-span),
    ArrowRight: () => timeline.scroll(span),
    "+": () => timeline.zoom(1.25),
    "=": () => timeline.zoom(1.25),
    "-": () => timeline.zoom(0.8),
    End: () => timeline.follow(),
    Home: () => timeline.scroll(-timeline.end),
    " ": onButton || $("replay").hidden ? null : () => player.toggle(),
  }[event.key];
  if (!does || event.repeat && !event.key.startsWith("Arrow")) return;
  event.preventDefault();
  does();
}

async function meet() {
  try {
    const [info, tables] = await Promise.all([ask("/v1/info", { key: key() }), ask("/v1/protocol")]);
    server = { info, codec: new Codec(tables) };
    $("model").textContent = info.model;
    $("ask-key").hidden = true;
    $("start").disabled = false;
    show(info.draining ? "bad" : "idle", info.draining ? "The server is going down" : "Ready");
  } catch (error) {
    $("start").disabled = true;
    if (KEY_ERRORS.has(error.code)) {
      if (key()) complain(error);
      show("idle", "A key is needed");
      askKey();
    } else complain(error);
  }
}

$("start").onclick = () => (live ? stop() : start());
$("deaf").onclick = () => start(false);
$("dismiss").onclick = () => ($("trouble").hidden = true);
$("mute").onclick = mute;
$("camera").onclick = toggleCamera;
$("say").onsubmit = send;
$("save-wav").onclick = () => save(recording.wav(), "wav");
$("save-jsonl").onclick = () => save(recording.jsonl(), "jsonl");
$("open").onchange = ({ target }) => target.files.length && openFiles(target.files).then(() => (target.value = ""));
$("zoom-in").onclick = () => timeline.zoom(1.25);
$("zoom-out").onclick = () => timeline.zoom(0.8);
$("follow").onclick = () => timeline.follow();
$("timeline").addEventListener("scrolled", () => ($("follow").hidden = timeline.following));
$("ask-key").onsubmit = (event) => {
  event.preventDefault();
  $("trouble").hidden = true;
  sessionStorage.setItem("key", $("key").value.trim());
  $("key").value = "";
  meet();
};
document.addEventListener("keydown", press);
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (!live && event.dataTransfer.files.length) openFiles(event.dataTransfer.files);
});
window.addEventListener("beforeunload", (event) => live?.ready && event.preventDefault());
$("start").disabled = true;
buttons();
timeline.draw();
await meet();
