"use strict";

// Asks the service every now and then and shows what it answers. Whatever comes from outside,
// such as the name of a file, enters the page as text (textContent), never as markup.
const POLL_MS = 1500;
const ANSWER_MS = 6000;
const KEPT = 24; // refused frames that the service remembers
const AT_ONCE = 2; // pictures that are asked for at the same time
const TONES = { running: "good", reloading: "good", starting: "warn", paused: "warn", draining: "warn", stopped: "bad" };
const FORMATS = {
  noise_sigma: number,
  focus: (value) => value.toFixed(2).replace("-", "−"),
  saturated_fraction: percent,
  background: number,
};
const $ = (id) => document.getElementById(id);
const shown = { id: null, wanted: null, live: null, answered: null };

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// Writing the same text again would end a selection that somebody just made.
function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function number(value) {
  const digits = Math.abs(value) < 10 ? 2 : Math.abs(value) < 100 ? 1 : 0;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
}
const whole = (value) => Number(value).toLocaleString("en");
function percent(fraction) {
  const value = 100 * fraction;
  if (value === 0) return "0 %";
  return value < 0.01 ? "< 0.01 %" : `${value < 10 ? value.toFixed(value < 1 ? 2 : 1) : value.toFixed(0)} %`;
}
function bytes(value) {
  const gib = value / 2 ** 30;
  return gib >= 1024 ? [number(gib / 1024), "TiB"] : [number(gib), "GiB"];
}
function duration(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} days`;
}
const clock = (date) => date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const plural = (count, word) => `${whole(count)} ${word}${count === 1 ? "" : "s"}`;

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(ANSWER_MS), cache: "no-store" });
  if (!answer.ok) throw new Error(String(answer.status));
  return answer.json();
}

function showState(status) {
  const state = $("state");
  state.dataset.tone = TONES[status.state] || "warn";
  set($("state-word"), status.state);
  set($("why"), status.why);
  $("why").title = status.why;
  set($("since"), `up ${duration(status.uptime_s)}`);
  document.title = status.state === "running" ? "segbatch" : `${status.state} – segbatch`;
  set($("version"), `segbatch ${status.version}`);
}

function showNumbers(status) {
  const total = Object.values(status.frames).reduce((sum, count) => sum + count, 0);
  const rate = status.frames_per_s;
  set($("rate"), rate >= 100 ? whole(Math.round(rate)) : rate.toFixed(rate && rate < 1 ? 2 : 1));
  set($("backlog"), whole(status.backlog));
  for (const outcome of ["segmented", "rejected", "failed"]) {
    const count = status.frames[outcome] || 0;
    set($(outcome), whole(count));
    set($(`${outcome}-share`), count ? percent(count / total) : "");
    $(outcome).closest("div").classList.toggle("some", count > 0);
  }
  set($("dropped"), status.camera ? whole(status.dropped) : "–");
  $("dropped-box").classList.toggle("some", status.dropped > 0);
  const free = status.folders.map((folder) => folder.disk_free_bytes).filter((value) => value !== null);
  const [value, unit] = free.length ? bytes(Math.min(...free)) : ["–", ""];
  set($("disk"), value);
  set($("disk-unit"), unit);
  const reasons = Object.entries(status.reasons).filter(([, count]) => count).sort((a, b) => b[1] - a[1]);
  set($("refused-reasons"), reasons.map(([reason, count]) => `${whole(count)} ${reason}`).join(", ") || "none so far");
}

function showFolders(status) {
  const rows = status.folders.flatMap((folder) => {
    const row = make("tr");
    const path = row.appendChild(make("td", "path", folder.path));
    path.title = folder.path;
    const watched = row.appendChild(make("td"));
    watched.append(folder.error ? make("span", "error", "trouble") : folder.observer);
    watched.title = folder.why;
    const free = folder.disk_free_bytes === null ? "–" : bytes(folder.disk_free_bytes).join(" ");
    for (const text of [whole(folder.runs_open), whole(folder.pending), whole(folder.backlog), free]) {
      row.append(make("td", "n", text));
    }
    if (!folder.error) return [row];
    const told = make("tr", "told");
    told.appendChild(make("td", "error", folder.error)).colSpan = 6;
    return [row, told];
  });
  if (!rows.length) {
    const row = make("tr");
    row.appendChild(make("td", "none", "No folder is watched.")).colSpan = 6;
    rows.push(row);
  }
  $("folders").replaceChildren(...rows);
}

function showMachine(status) {
  const lines = [];
  const add = (term, text, className) => lines.push(make("dt", "", term), make("dd", className, text));
  const camera = status.camera;
  if (camera) {
    add("Camera", camera.state + (camera.retry_in_s ? `, tried again in ${Math.ceil(camera.retry_in_s)} s` : ""), camera.state === "failed" ? "error" : "");
    if (camera.error) add("", camera.error, "error");
    add("Frames", `${whole(camera.frames_taken)} taken, ${whole(camera.frames_written)} written, ${whole(camera.dropped)} dropped`);
    if (camera.ring_capacity) add("Ring buffer", `${whole(camera.ring_used)} of ${whole(camera.ring_capacity)}`);
    if (camera.run) add("Run", camera.run);
  } else {
    add("Camera", "none is driven by this service");
  }
  const engine = status.engine;
  add("Engine", engine ? `${engine.name}, ${engine.precision}` : "not open yet");
  if (engine) add("Network", `${engine.model} (${engine.model_sha256.replace("sha256:", "").slice(0, 12)})`);
  add("Process", `${status.pid}, since ${status.started_at.slice(0, 19).replace("T", " ")} UTC`);
  lines.forEach((line) => { if (line.tagName === "DD") line.title = line.textContent; });
  $("machine").replaceChildren(...lines);
}

// Why a picture did not come stands in the answer that came instead of it.
async function picture(path, alt, className) {
  const image = make("img", className);
  image.alt = alt;
  image.decoding = "async";
  image.src = path;
  try {
    await image.decode();
    return image;
  } catch {
    const reason = new Error("not shown");
    try {
      const answer = await fetch(path, { signal: AbortSignal.timeout(ANSWER_MS), cache: "no-store" });
      if (!answer.ok) reason.message = (await answer.text()).trim();
      reason.passing = answer.ok || answer.status === 503;
    } catch {
      reason.passing = true; // the service is gone: the page says so elsewhere
    }
    throw reason;
  }
}

async function showFrame(frame) {
  if (!frame || frame.id === shown.wanted) return;
  if (shown.wanted !== shown.id) return; // the one before is still on its way
  shown.wanted = frame.id;
  const place = frame.shape && frame.shape.length > 1 ? `${frame.shape[1]} × ${frame.shape[0]} px` : "";
  const [base, mask] = await Promise.allSettled([
    picture(`frame/${frame.id}.png`, `Frame ${frame.file}`),
    picture(`mask/${frame.id}.png`, "Its mask", "mask"),
  ]);
  const layers = [base, mask].filter((part) => part.status === "fulfilled").map((part) => part.value);
  $("layers").replaceChildren(...layers);
  const note = $("stage-note");
  note.classList.toggle("over", base.status === "fulfilled");
  set(note, base.status === "rejected" ? base.reason.message : mask.status === "rejected" ? mask.reason.message : "");
  set($("last-file"), frame.page ? `${frame.file}, frame ${frame.page}` : frame.file);
  $("last-file").title = `${frame.folder}/${frame.file}`;
  const facts = [place];
  if (frame.mask) {
    facts.push(plural(frame.mask.objects, "object"), `${percent(frame.mask.foreground_fraction)} covered`);
  }
  const taken = Object.values(frame.timing_ms).reduce((sum, ms) => sum + ms, 0);
  facts.push(`${Math.round(taken)} ms`);
  set($("last-facts"), facts.filter(Boolean).join("  ·  "));
  $("last-age").dataset.at = frame.written_at;
  shown.id = frame.id;
  if ([base, mask].some((part) => part.status === "rejected" && part.reason.passing)) {
    shown.id = shown.wanted = null; // asked for again at the next poll
  }
}

const queue = [];
let loading = 0;
function nextThumb() {
  while (loading < AT_ONCE && queue.length) {
    const { box, shot } = queue.shift();
    if (!box.isConnected) continue;
    loading += 1;
    picture(`thumb/${shot.id}.png`, `Frame ${shot.file}`).then(
      (image) => { box.classList.add("full"); box.replaceChildren(image); },
      (error) => {
        box.textContent = error.message;
        if (error.passing) setTimeout(() => { queue.push({ box, shot }); nextThumb(); }, 2 * POLL_MS);
      },
    ).finally(() => { loading -= 1; nextThumb(); });
  }
}

function thumb(shot) {
  const item = make("li", shot.outcome);
  item.dataset.id = shot.id;
  const box = item.appendChild(make("div", "pic"));
  item.append(make("p", "reason", shot.reasons.join(", ") || shot.outcome));
  item.append(make("p", "name", shot.page ? `${shot.file} [${shot.page}]` : shot.file));
  const lines = [`${shot.folder}/${shot.file}`, clock(new Date(shot.written_at))];
  if (shot.rule) {
    lines.push(`${shot.rule.measure.replaceAll("_", " ")} ${shot.rule.value.toPrecision(4)} is ${shot.rule.side} ${shot.rule.threshold.toPrecision(4)}`);
  }
  if (shot.error) lines.push(shot.error);
  item.title = lines.join("\n");
  queue.push({ box, shot });
  return item;
}

// The places of frames to come are kept free, so that nothing moves when they do.
function vacant() {
  const item = make("li", "vacant");
  item.setAttribute("aria-hidden", "true");
  item.append(make("div", "pic"), make("p", "reason", "\u00a0"), make("p", "name", "\u00a0"));
  return item;
}

function showRefused(refused) {
  const list = $("refused");
  const there = new Map([...list.children].map((item) => [item.dataset.id, item]));
  if (list.children.length === KEPT && refused.every((shot, i) => list.children[i].dataset.id === shot.id)) return;
  const items = refused.map((shot) => there.get(shot.id) || thumb(shot));
  while (items.length < KEPT) items.push(vacant());
  list.replaceChildren(...items);
  nextThumb();
}

function showQuality() {
  if (!shown.live) return;
  const quality = shown.live.quality;
  set($("quality-span"), `last ${quality.span_s >= 3600 ? "hour" : `${quality.span_s / 60} min`}`);
  for (const svg of document.querySelectorAll("svg[data-curve]")) {
    const name = svg.dataset.curve;
    Curves.draw(svg, quality, name, FORMATS[name]);
    const values = quality[name].mean.filter((value) => value !== null);
    set(document.querySelector(`[data-value=${name}]`), values.length ? FORMATS[name](values[values.length - 1]) : "–");
  }
}

function showAges() {
  const at = $("last-age").dataset.at;
  if (at) set($("last-age"), `${duration(Math.max(0, (Date.now() - new Date(at)) / 1000))} ago`);
}

function showGone() {
  document.body.classList.add("gone");
  $("state").dataset.tone = "bad";
  set($("state-word"), "no answer");
  set($("why"), shown.answered ? `The service has not answered since ${clock(shown.answered)}.` : "The service does not answer.");
  set($("since"), "");
  document.title = "no answer – segbatch";
}

async function poll() {
  try {
    const [status, live] = await Promise.all([ask("status"), ask("live.json")]);
    document.body.classList.remove("gone");
    shown.answered = new Date();
    shown.live = live;
    showState(status);
    showNumbers(status);
    showFolders(status);
    showMachine(status);
    showRefused(live.refused);
    showQuality();
    if (!live.frame) set($("stage-note"), "No frames yet.");
    showFrame(live.frame);
    showAges();
  } catch {
    showGone();
  }
}

// A page that nobody looks at asks for nothing.
let timer = 0, asking = false;
async function keepAsking() {
  clearTimeout(timer);
  if (document.hidden || asking) return;
  asking = true;
  await poll();
  asking = false;
  timer = setTimeout(keepAsking, POLL_MS);
}
document.addEventListener("visibilitychange", keepAsking);
window.addEventListener("resize", showQuality);
$("mask-on").addEventListener("change", (event) => $("layers").classList.toggle("bare", !event.target.checked));
keepAsking();
