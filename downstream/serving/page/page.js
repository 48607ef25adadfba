// The page: upload in parts, follow, compare, prompt, download. Whatever comes from outside is put
// into the page as text, never as HTML.
"use strict";

const at = id => document.getElementById(id);
const NAMES = "core-mri names"; // of files, by job; they never leave this browser
const names = () => JSON.parse(localStorage.getItem(NAMES) ?? "{}");
let about = { sources: [], chunk_bytes: 8e6, keep_h: 24 };
let shown = null; // the job in detail
let prompts = [];
let asking = Promise.resolve();

const viewers = new Viewers(at("viewers"), onPlace, onPrompt);

// ---- requests ----------------------------------------------------------------------------------

class Refusal extends Error {
  constructor(status, error, retry) {
    super([error.message, error.fix].filter(Boolean).join(" "));
    Object.assign(this, { status, code: error.code, retry });
  }
}

async function ask(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  const error = body.error ?? { code: "", message: `The server answered ${answer.status}.`, fix: "" };
  if (answer.status === 401) at("login").hidden = false;
  throw new Refusal(answer.status, error, Number(answer.headers.get("Retry-After") ?? 0));
}
const askJson = async (path, options) => (await ask(path, options)).json();
const post = (path, body, headers = {}) => askJson(path, {
  method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", ...headers },
});
const wait = seconds => new Promise(done => setTimeout(done, 1000 * seconds));

// Again after a lost connection or when the server has no room; a refusal is final.
async function persistently(action, tries = 8) {
  for (let n = 0; ; n++) {
    try {
      return await action(n);
    } catch (error) {
      const passing = !(error instanceof Refusal) || [408, 429, 502, 503, 507].includes(error.status);
      if (!passing || n + 1 === tries) throw error;
      await wait(Math.min(error.retry || 2 ** n / 2, 30));
    }
  }
}

function tell(error) {
  const lost = error instanceof TypeError && /fetch|network|load/i.test(error.message);
  at("message").textContent = lost ? "The server cannot be reached. Is it still running?" : error?.message ?? "";
}

// ---- upload ------------------------------------------------------------------------------------

async function send(file) {
  at("message").textContent = "";
  if (!file) return;
  if (!file.size) return tell(new Error("This file is empty. Send the scan itself."));
  const body = { size: file.size, source: at("source").value };
  if (at("simulate").checked) {
    body.mask = { kind: "random", acceleration: Number(at("acceleration").value), center_fraction: 0.08, seed: 0 };
  }
  try {
    const key = crypto.getRandomValues(new Uint32Array(4)).join("-");
    let job = await persistently(() => post("/v1/jobs", body, { "Idempotency-Key": key }));
    localStorage.setItem(NAMES, JSON.stringify({ ...names(), [job.id]: file.name }));
    await open(job);
    while (job.offset < file.size && job.state === "uploading") {
      job = await persistently(async tried => {
        if (tried) job = await askJson(`/v1/jobs/${job.id}`); // what arrived before it broke
        if (job.offset === file.size || job.state !== "uploading") return job;
        return askJson(`/v1/jobs/${job.id}/content`, {
          method: "PATCH", body: file.slice(job.offset, job.offset + about.chunk_bytes),
          headers: { "Upload-Offset": String(job.offset), "Content-Type": "application/octet-stream" },
        });
      });
      if (shown?.id === job.id) draw(job);
    }
  } catch (error) {
    tell(error);
  }
  list();
}

// ---- follow ------------------------------------------------------------------------------------

async function open(job) {
  if (shown?.id !== job.id) {
    prompts = [];
    viewers.clear();
  }
  shown = null;
  await draw(job);
  at("detail-title").focus();
  list();
  if (!["done", "failed", "cancelled"].includes(job.state)) follow(job.id);
}

async function follow(id) {
  while (shown?.id === id) {
    try {
      const reader = (await ask(`/v1/jobs/${id}/events`)).body.pipeThrough(new TextDecoderStream()).getReader();
      for (let text = ""; ;) {
        const { done, value } = await reader.read();
        if (done) break;
        const parts = (text + value).split("\n\n");
        text = parts.pop();
        for (const part of parts) {
          const data = part.split("\n").find(line => line.startsWith("data: "));
          if (!data || shown?.id !== id) continue;
          const job = JSON.parse(data.slice(6));
          await draw(job);
          if (["done", "failed", "cancelled"].includes(job.state)) return list();
        }
      }
    } catch (error) {
      if (error instanceof Refusal && error.status !== 429) return tell(error);
    }
    await wait(1);
  }
}

const STATES = { uploading: "uploading", queued: "waiting for its turn", running: "at work", done: "done",
                 failed: "failed", cancelled: "cancelled" };
const nameOf = job => names()[job.id] ?? (job.name || `job ${job.id.slice(0, 8)}`);

async function draw(job) {
  const before = shown;
  shown = job;
  const ended = ["done", "failed", "cancelled"].includes(job.state);
  at("detail").hidden = false;
  at("detail-title").textContent = nameOf(job);
  const part = job.state === "uploading" ? job.offset / job.size : job.progress;
  at("state").textContent = STATES[job.state] + (job.phase ? `: ${job.phase}` : "") +
    (job.state === "uploading" ? ` ${Math.floor(100 * part)} %` : "");
  at("progress").value = part;
  at("progress").hidden = ended;
  at("cancel").hidden = ended;
  at("error").hidden = !job.error;
  at("error").textContent = job.error ? `${job.error.message} ${job.error.fix} (${job.error.code})` : "";
  at("outcome").hidden = job.state !== "done";
  if (job.state === "done" && before?.state !== "done") await drawOutcome(job);
}

// ---- outcome -----------------------------------------------------------------------------------

const resultOf = (job, name) => job.results.find(result => result.name === name);
const bytesOf = async result => (await ask(result.url)).arrayBuffer();

async function drawOutcome(job) {
  const report = job.report;
  drawTables(report);
  drawDownloads(job);
  const picture = resultOf(job, "preview.png");
  if (picture) {
    at("preview").src = URL.createObjectURL(await (await ask(picture.url)).blob());
    const caption = report.metrics ? `The middle slice. Below: the difference to ${report.metrics.reference}, 5 times as bright.`
      : "The middle slice.";
    at("preview").alt = at("preview-caption").textContent = caption;
  }
  at("prompting").hidden = !about.sources.some(source => source.role === "prompt");
  at("convention").textContent = report.geometry === "synthetic"
    ? "The raw data states no position: directions are unknown."
    : "Radiological convention: the patient's right is on the left.";
  const titles = { "zero_filled.nii.gz": "zero-filled", "reconstruction.nii.gz": `reconstruction (${report.source})`,
                   "reference.nii.gz": "reference", "difference.nii.gz": "difference, 5 times as bright", "image.nii.gz": "scan" };
  try {
    const volumes = [];
    for (const [name, title] of Object.entries(titles)) {
      const result = resultOf(job, name);
      if (result) volumes.push({ title, buffer: await bytesOf(result), isDifference: name === "difference.nii.gz" });
    }
    await viewers.show(volumes, report.geometry === "synthetic" ? "plane" : report.view);
    await drawMask(job);
  } catch (error) {
    at("place").textContent = `The viewer cannot be shown (${error.message}); the picture below can.`;
  }
}

async function drawMask(job) {
  const mask = resultOf(job, "mask.nii.gz");
  const structures = job.report.structures ?? [];
  await viewers.overlay(mask ? await bytesOf(mask) : null, Math.max(1, ...structures.map(s => s.value)));
}

function fill(table, head, rows) {
  table.hidden = !rows.length;
  const line = (cells, kind) => {
    const row = document.createElement("tr");
    cells.forEach((value, i) => {
      const cell = document.createElement(kind);
      cell.textContent = value;
      if (i && head.length) cell.className = "number";
      row.append(cell);
    });
    return row;
  };
  table.tHead?.replaceChildren(line(head, "th"));
  table.tBodies[0].replaceChildren(...rows.map(row => line(row, "td")));
}

function drawTables(report) {
  at("likeness").hidden = !report.likeness?.unlike;
  at("likeness").textContent = report.likeness?.unlike ? `Warning: ${report.likeness.sentence}` : "";
  const { reference, ...scores } = report.metrics ?? {};
  at("metrics").caption.textContent = `Against ${reference}` + (report.simulated_undersampling ? ", undersampling simulated" : "");
  const number = value => value == null ? "equal" : value.toPrecision(4);
  fill(at("metrics"), ["", "NMSE (less is better)", "PSNR, dB", "SSIM"],
       Object.entries(scores).map(([name, s]) => [name, number(s.NMSE), number(s.PSNR), number(s.SSIM)]));
  fill(at("structures"), ["", "voxels", "ml"],
       (report.structures ?? []).map(s => [s.name, String(s.voxels), String(s.ml)]));
  const residuals = (report.residual ?? []).filter(r => r != null);
  const facts = {
    "Method": report.source, "Version": report.version, "File": report.layout,
    "Slices": report.slices, "Image": report.rows && `${report.rows} x ${report.columns}`, "Coils": report.coils,
    "Undersampling": report.acceleration && `${report.acceleration}-fold`, "Center lines": report.center_lines,
    "Residual of the measured samples": residuals.length ? `up to ${Math.max(...residuals).toPrecision(3)}` : null,
    "Likeness to the training": report.likeness && `${report.likeness.unlike ? "unlike" : "like"} (score ${report.likeness.score.toPrecision(3)}, ` +
      `threshold ${report.likeness.threshold.toPrecision(3)})`,
    "Geometry": report.geometry, "Size": report.shape?.join(" x "), "Voxel, mm": report.spacing_mm?.join(" x "),
    "Files left out": Object.entries(report.held_back ?? {}).map(([code, n]) => `${n} (${code})`).join(", ") || null,
    "Seconds": report.seconds,
  };
  fill(at("facts"), [], Object.entries(facts).filter(([, value]) => value != null && value !== "").map(([k, v]) => [k, String(v)]));
}

function drawDownloads(job) {
  at("downloads").replaceChildren(...job.results.map(result => {
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = result.name;
    button.onclick = () => download(result).catch(tell);
    item.append(button, ` ${result.what}, ${(result.bytes / 1e6).toPrecision(2)} MB`);
    return item;
  }));
}

async function download(result) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await (await ask(result.url)).blob());
  link.download = result.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// ---- prompts -----------------------------------------------------------------------------------

function onPlace(place) {
  const position = shown?.report?.geometry === "synthetic" ? "" : `mm ${Array.from(place.mm).slice(0, 3).map(v => v.toFixed(1)).join(", ")}; `;
  at("place").textContent = `${position}${place.values?.map(v => v.value.toPrecision(4)).join(", ") ?? ""}`;
}

const mode = () => document.querySelector("input[name=prompt]:checked").value;

function onPrompt(from, to) {
  if (at("prompting").hidden || mode() === "look") return;
  if (mode() === "box") {
    if (!from || Math.hypot(...to.map((v, i) => v - from[i])) < 2) return;
    prompts = prompts.filter(p => !p.box);
    prompts.push({ box: [...from, ...to] });
  } else {
    prompts.push({ point: [...to, mode() === "inside" ? 1 : 0] });
  }
  segment();
}

const halfOpen = (a, b) => [...a.map((v, i) => Math.min(v, b[i])), ...a.map((v, i) => Math.max(v, b[i]) + 1)];

function segment() {
  const job = shown, toVoxel = viewers.toVoxel; // null where positions in mm are known
  const boxes = prompts.filter(p => p.box).map(({ box }) => toVoxel ? halfOpen(toVoxel(box.slice(0, 3)), toVoxel(box.slice(3))) : box);
  const points = prompts.filter(p => p.point).map(({ point }) => toVoxel ? [...toVoxel(point), point[3]] : point);
  at("prompt-state").textContent = prompts.length ? "working" : "";
  asking = asking.then(async () => {
    if (!prompts.length) return viewers.overlay(null, 1);
    try {
      const start = performance.now();
      const answered = await post(`/v1/jobs/${job.id}/prompts`, { boxes, points, world: !toVoxel });
      if (shown?.id !== job.id) return;
      shown = answered;
      drawTables(answered.report);
      drawDownloads(answered);
      await drawMask(answered);
      at("prompt-state").textContent = `${prompts.length} prompt${prompts.length > 1 ? "s" : ""}, ${((performance.now() - start) / 1000).toFixed(1)} s`;
    } catch (error) {
      at("prompt-state").textContent = error.message;
    }
  });
}

at("add").onclick = () => onPrompt(null, viewers.crosshair());
at("undo").onclick = () => { prompts.pop(); segment(); };
at("clear").onclick = () => { prompts = []; segment(); };

// ---- list and start ----------------------------------------------------------------------------

async function list() {
  let jobs;
  try {
    ({ jobs } = await askJson("/v1/jobs"));
  } catch (error) {
    return tell(error);
  }
  at("empty").hidden = jobs.length > 0;
  at("history").hidden = !jobs.length;
  const time = seconds => new Date(1000 * seconds).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
  at("history").tBodies[0].replaceChildren(...jobs.map(job => {
    const row = document.createElement("tr"), button = document.createElement("button"), last = document.createElement("td");
    for (const text of [nameOf(job), STATES[job.state], time(job.created), time(job.expires)]) {
      row.insertCell().textContent = text;
    }
    button.type = "button";
    button.textContent = "Open";
    button.setAttribute("aria-label", `Open ${nameOf(job)}`);
    button.onclick = () => askJson(`/v1/jobs/${job.id}`).then(open).catch(tell);
    last.append(button);
    row.append(last);
    return row;
  }));
}

async function start() {
  try {
    about = await askJson("/v1/service");
  } catch (error) {
    return error.status === 401 ? undefined : tell(error);
  }
  at("login").hidden = true;
  at("keep").textContent = about.keep_h;
  at("source").replaceChildren(at("source").options[0], ...about.sources.map(source => {
    const role = { reconstruct: "raw data", segment: "images", prompt: "images, by boxes and clicks" }[source.role];
    return new Option(`${source.name} (${role})`, source.name);
  }));
  list();
}

at("file").onchange = () => { send(at("file").files[0]); at("file").value = ""; };
at("token-form").onsubmit = event => {
  event.preventDefault();
  sessionStorage.setItem("token", at("token").value);
  at("message").textContent = "";
  start().then(() => { if (!at("login").hidden) tell(new Error("This token is not known.")); });
};
at("cancel").onclick = () => ask(`/v1/jobs/${shown.id}/cancel`, { method: "POST" }).then(a => a.json()).then(draw).then(list).catch(tell);
at("delete").onclick = () => {
  if (!confirm("Erase this job and its results from the server?")) return;
  ask(`/v1/jobs/${shown.id}`, { method: "DELETE" }).then(() => {
    const { [shown.id]: _, ...rest } = names();
    localStorage.setItem(NAMES, JSON.stringify(rest));
    shown = null;
    viewers.clear();
    at("detail").hidden = true;
    list();
  }).catch(tell);
};
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, event => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") send(event.dataTransfer.files[0]);
  });
}
start();
