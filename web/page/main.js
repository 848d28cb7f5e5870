// The page: what the visitor sets, what the worker tells, and what is shown of it. No state but what is named here.

import { Client } from "./client.js";
import { OwnText } from "./own.js";
import { clearModel } from "./store.js";
import { Strip } from "./strip.js";
import { bytes, count, duration } from "./words.js";

const $ = (id) => document.getElementById(id);
const opened = performance.now();

const LENGTHS = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072];

/** What is known of the model, the device, and the text. */
const state = {
  model: undefined,
  device: undefined,
  text: undefined,
  /** Reading or answering. */
  isBusy: false,
  isRead: false,
  /** Pieces of the answer, and for each what was fetched: layer, head, block, share, and so on. */
  answer: [],
  first: undefined,
};

const client = new Client(receive);
const own = new OwnText($("own-text"), $("own-file"), $("own-state"));
const strip = new Strip($("strip"), $("strip-canvas"), showBlock);

// ---- The model and the device

async function start() {
  problem("");
  $("model-progress").hidden = false;
  $("model-state").textContent = "Loading the model …";
  try {
    const { model, state: stored } = await client.call("load");
    state.model = model;
    $("context").textContent = count(model.context);
    showStored(stored);
    $("clear").disabled = !stored.kept;
    await open(wanted());
    busy(false);
  } catch (error) {
    failed(error);
  } finally {
    $("model-progress").hidden = true;
  }
}

/** The device that the address asks for, as in `?device=cpu` and `?device=gpu`; else whichever is faster. */
function wanted() {
  const named = new URLSearchParams(location.search).get("device");
  return named === "cpu" || named === "gpu" ? named : "faster";
}

function showStored(stored) {
  const size = bytes(stored.bytes);
  const check = stored.checked ? ", its SHA-256 checked" : ", unchecked: this page was not served securely";
  const damaged = stored.damaged.length
    ? ` What was stored of ${stored.damaged.join(", ")} was damaged and has been replaced.`
    : "";
  $("model-state").dataset.source = stored.isStored ? "stored" : "network";
  $("model-state").textContent = (stored.isStored
    ? `Model ready: ${size}, from this browser's store${check}.`
    : stored.kept
      ? `Model ready: ${size}, downloaded and now stored in this browser${check}.`
      : `Model ready: ${size}, downloaded${check}. This browser did not let it be stored.`) + damaged;
}

/**
 * Opens a device: `gpu`, `cpu`, or the `faster` of the two, which is the GPU unless there is none or the browser computes it
 * in software. Says what was taken and why.
 */
async function open(which) {
  let why = "";
  let hasGpu = false;
  let device;
  if (which !== "cpu") {
    try {
      device = await client.call("open", { gpu: true });
      hasGpu = true;
      if (device.software && which === "faster") {
        why = `This browser's WebGPU is computed in software (${device.name}), slower than the CPU by itself. `;
        device = undefined;
      }
    } catch (error) {
      if (error.name !== "LandmarkDeviceError") throw error;
      why = `WebGPU cannot be used: ${error.message.replace(/\.$/, "")}. `;
    }
  }
  device ??= await client.call("open", { gpu: false });
  state.device = device;
  const isGpu = device.kind === "gpu";
  const slow = device.software ? " It is a GPU in software, and slow." : "";
  $("device-state").textContent = `${why}Computing on ${isGpu ? `WebGPU: ${device.name}` : "the CPU, in WebAssembly"}.${slow}`;
  $("device-state").dataset.kind = device.kind;
  $("n-device").textContent = isGpu ? `WebGPU: ${device.name}` : device.name;
  $("switch").hidden = !hasGpu && which !== "cpu";
  $("switch").textContent = isGpu ? "Use the CPU instead" : "Use WebGPU instead";
}

/** Goes on with another device. A text that was read, or was being read, is read again. */
async function goOnWith(which) {
  $("go-on").hidden = true;
  problem("");
  const again = state.text !== undefined;
  state.isRead = false;
  busy(true);
  try {
    await open(which);
    busy(false);
  } catch (error) {
    failed(error);
    return;
  }
  if (again) await readAndAsk();
}

$("switch").addEventListener("click", () => state.isBusy || goOnWith(state.device.kind === "gpu" ? "cpu" : "gpu"));
$("go-on").addEventListener("click", () => goOnWith("cpu"));
$("reload").addEventListener("click", async () => {
  $("reload").hidden = true;
  await clearModel().catch(() => false);
  client.restart();
  await start();
});

$("clear").addEventListener("click", async () => {
  const was = await clearModel().catch(() => false);
  $("clear").disabled = true;
  $("model-state").textContent = was
    ? "The stored model was removed. This page goes on with what it has loaded; the next visit downloads it again."
    : "There was no stored model.";
});

// ---- What goes wrong

function problem(text) {
  $("problem").textContent = text;
}

/** Says what went wrong, and what can be done about it. */
function failed(error) {
  busy(false);
  if (error.name === "LandmarkInputError") {
    $("form-problem").textContent = error.message;
    return;
  }
  if (error.name === "LandmarkDeviceError") {
    problem(`The GPU failed: ${error.message}. The text and the model are still here.`);
    $("go-on").hidden = false;
    $("go-on").focus();
    return;
  }
  problem(error.name === "LandmarkCrash"
    ? `The model's thread stopped (${error.message}). Perhaps memory ran out: try a shorter text.`
    : `${error.message}`);
  $("start").disabled = $("ask-now").disabled = true;
  $("reload").hidden = false;
}

// ---- The form

const source = () => document.querySelector("input[name=source]:checked").value;
const length = () => LENGTHS[Number($("length").value)];

function showSettings() {
  $("length-out").textContent = `${count(length())} tokens`;
  $("length").setAttribute("aria-valuetext", `${count(length())} tokens`);
  $("depth-out").textContent = `${$("depth").value} % into the text`;
  $("depth").setAttribute("aria-valuetext", `${$("depth").value} percent into the text`);
  $("own").hidden = source() !== "own";
  const isFiller = !["own", "holmes"].includes(source());
  if (isFiller) $("hide").checked = true;
  $("hide").disabled = isFiller;
  $("depth").disabled = !$("hide").checked;
}
$("setup").addEventListener("input", showSettings);
showSettings();

function busy(is) {
  state.isBusy = is;
  $("start").disabled = is || !state.device;
  $("cancel").hidden = !is;
  $("ask-now").disabled = is || !state.isRead;
  $("switch").disabled = is;
}

$("setup").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!state.isBusy && state.device) run();
});
$("cancel").addEventListener("click", () => {
  client.cancel();
  $("cancel").hidden = true;
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!state.isBusy && state.isRead) answer();
});

// A file that misses the field must not replace the page.
for (const type of ["dragover", "drop"]) {
  addEventListener(type, (event) => event.preventDefault());
}
addEventListener("drop", (event) => {
  const [file] = event.dataTransfer?.files ?? [];
  if (!file || event.target === $("own-text")) return;
  document.querySelector("input[value=own]").checked = true;
  showSettings();
  own.take(file);
});

async function ownText() {
  if (source() === "own") return own.text;
  if (source() !== "holmes") return "";
  const response = await fetch("texts/holmes.txt");
  if (!response.ok) throw new Error(`texts/holmes.txt could not be fetched: the server answered ${response.status}`);
  return response.text();
}

// ---- Reading and asking

/** Prepares the text; then reads it, and asks. */
async function run() {
  $("form-problem").textContent = "";
  problem("");
  busy(true);
  state.isRead = false;
  clearAnswer();
  try {
    $("read-state").textContent = "Preparing the text …";
    const text = await ownText();
    if (!text.trim() && ["own", "holmes"].includes(source())) {
      busy(false);
      $("read-state").textContent = "";
      $("form-problem").textContent = "There is no text yet: paste one, drop a file, or choose a built-in one.";
      $("own-text").focus();
      return;
    }
    state.text = await client.call("prepare", {
      filler: ["own", "holmes"].includes(source()) ? "" : source(),
      own: text,
      hide: $("hide").checked,
      length: length(),
      depth: Number($("depth").value) / 100,
      seed: crypto.getRandomValues(new Uint16Array(1))[0],
    });
    if (state.text.question) $("question").value = state.text.question;
  } catch (error) {
    $("read-state").textContent = "";
    failed(error);
    return;
  }
  await readAndAsk();
}

/** Reads the text that is prepared, and asks. */
async function readAndAsk() {
  busy(true);
  clearAnswer();
  try {
    showText();
    const read = await client.call("read", { total: state.text.tokens });
    showMemory(read.held);
    $("n-reading").textContent = read.tokens ? `${count(read.tokens / read.seconds)} tokens/s` : "–";
    $("n-attended").textContent =
      `${read.topK} of ${count(state.text.blocks)} blocks for each layer and head, of ${state.model.block} positions each`;
    $("read-progress").hidden = true;
    if (read.cancelled) {
      milestone(`Cancelled after ${count(read.tokens)} of ${count(state.text.tokens)} tokens.`);
      busy(false);
      $("start").focus();
      return;
    }
    milestone(`Read ${count(state.text.tokens)} tokens in ${duration(read.seconds)}.`
      + (state.text.cut ? " The rest of the text is beyond the chosen length and was left away." : ""));
    strip.read = state.text.blocks;
    state.isRead = true;
    await answer();
  } catch (error) {
    $("read-progress").hidden = true;
    $("read-state").textContent = "";
    failed(error);
  }
}

function milestone(text) {
  $("read-state").textContent = text;
  $("milestones").textContent = text;
}

/** Asks with the memory, then without. */
async function answer() {
  const question = $("question").value;
  $("form-problem").textContent = "";
  if (!question.trim()) {
    $("form-problem").textContent = "There is no question. Ask something.";
    $("question").focus();
    return;
  }
  busy(true);
  clearAnswer();
  const isForKey = question === state.text.question;
  const expected = isForKey ? state.text.expected : undefined;
  const limit = isForKey ? state.text.maxNewTokens : 48;
  try {
    $("with").textContent = "…";
    const said = await client.call("ask", { question, limit });
    showMemory(said.held);
    if (said.tokens) $("n-answering").textContent = `${count(said.tokens / said.seconds)} tokens/s, the first after ${duration(said.toFirst)}`;
    if (state.first === undefined && said.tokens) {
      state.first = performance.now() - opened;
      $("n-first").textContent = duration(state.first / 1000);
    }
    finish("with", said.answer, expected);
    showFetched();
    if (said.cancelled) return;
    $("without").textContent = "…";
    const alone = await client.call("askAlone", { question, limit });
    showMemory(alone.held);
    finish("without", alone.answer, expected, `It sees the last ${count(alone.seen)} tokens and nothing else.`);
  } catch (error) {
    failed(error);
  } finally {
    busy(false);
  }
}

/** The end of an answer, and whether it is right. */
function finish(where, said, expected, more = "") {
  $(where).textContent = said || "(nothing)";
  const verdict = $(`${where}-verdict`);
  verdict.textContent = more;
  verdict.className = "";
  if (expected === undefined) return;
  const isRight = said.match(/\d+/)?.[0].replace(/^0+(?=\d)/, "") === expected;
  verdict.textContent = `${isRight ? "Right" : "Wrong"}: the pass key is ${expected}. ${more}`;
  verdict.className = isRight ? "right" : "wrong";
}

function clearAnswer() {
  state.answer = [];
  for (const where of ["with", "without"]) {
    $(where).textContent = "–";
    $(`${where}-verdict`).textContent = "";
  }
  $("filters").hidden = $("fetched").hidden = true;
  strip.fetched = new Map();
}

/** What the worker tells on the way. */
function receive(event) {
  if (event.event === "load") {
    $("model-progress").max = event.total;
    $("model-progress").value = event.done;
    const verb = event.network ? "Downloading" : "Checking";
    $("model-state").textContent = `${verb} the model …`;
  } else if (event.event === "read") {
    const { tokens, total, seconds } = event;
    const speed = tokens / seconds;
    $("read-progress").hidden = false;
    $("read-progress").max = total;
    $("read-progress").value = tokens;
    $("read-state").textContent = `${count(tokens)} of ${count(total)} tokens read, ${count(speed)} tokens/s, `
      + `${duration(Math.max(total - tokens, 0) / speed)} left`;
    $("n-reading").textContent = `${count(speed)} tokens/s`;
    showMemory(event.held);
    strip.read = Math.floor(tokens / state.model.freq);
  } else if (event.event === "answer") {
    $("with").textContent = event.answer;
    state.answer.push({ piece: event.piece, lookups: event.lookups });
    showFetched();
  } else if (event.event === "alone") {
    $("without").textContent = event.answer;
  }
}

function showMemory({ wasm, gpu }) {
  $("n-memory").textContent = gpu ? `${bytes(wasm + gpu)} (${bytes(gpu)} of it on the GPU)` : bytes(wasm);
  $("n-memory").dataset.bytes = wasm + gpu;
}

// ---- Blocks

function showText() {
  const { blocks, tokens, needle } = state.text;
  for (const id of ["strip", "legend", "strip-help"]) $(id).hidden = false;
  $("block").hidden = true;
  $("blocks-state").textContent = `${count(tokens)} tokens in ${count(blocks)} blocks of ${state.model.freq}.`
    + (needle ? ` The pass key stands in block ${count(needle[0] + 1)}.` : "");
  strip.show(blocks, needle);
  $("read-progress").value = 0;
}

/** What was fetched for the tokens, layers and heads that are chosen: to the strip, and to the table. */
function showFetched() {
  fillFilters();
  const [token, layer, head] = ["token", "layer", "head"].map((id) => Number($(id).value));
  const fetched = new Map();
  const steps = token < 0 ? state.answer : state.answer.slice(token, token + 1);
  for (const { lookups } of steps) {
    for (let at = 0; at < lookups.length; at += 4) {
      if ((layer >= 0 && lookups[at] !== layer) || (head >= 0 && lookups[at + 1] !== head)) continue;
      const found = fetched.get(lookups[at + 2]) ?? { share: 0, by: new Set() };
      found.share = Math.max(found.share, lookups[at + 3]);
      found.by.add(lookups[at] * state.model.heads + lookups[at + 1]);
      fetched.set(lookups[at + 2], found);
    }
  }
  strip.fetched = fetched;
  const { needle, blocks } = state.text;
  const hasNeedle = needle && [...fetched.keys()].some((block) => strip.isNeedle(block));
  $("blocks-state").textContent = fetched.size
    ? `${count(fetched.size)} of ${count(blocks)} blocks were fetched.`
      + (needle ? ` The one with the pass key, block ${count(needle[0] + 1)}, is ${hasNeedle ? "" : "not "}among them.` : "")
    : `${count(blocks)} blocks; none was fetched.`;
  $("blocks-state").dataset.needle = hasNeedle ? "fetched" : "missed";
  showTable(fetched);
}

function showTable(fetched) {
  $("fetched").hidden = fetched.size === 0;
  const rows = [...fetched].sort((a, b) => b[1].share - a[1].share).slice(0, 200).map(([block, { share, by }]) => {
    const row = document.createElement("tr");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = count(block + 1);
    button.setAttribute("aria-label", `Show block ${count(block + 1)}`);
    button.addEventListener("click", () => strip.select(block));
    const heads = `${count(by.size)} of ${count(state.model.layers * state.model.heads)} heads`;
    for (const cell of [button, `${(share * 100).toFixed(1)} %`, heads, strip.isNeedle(block) ? "yes" : ""]) {
      row.insertCell().append(cell);
    }
    return row;
  });
  $("fetched-rows").replaceChildren(...rows);
}

/** The choices, made once for a model and grown with the answer. */
function fillFilters() {
  $("filters").hidden = state.answer.length === 0;
  const fill = (select, all, names) => {
    if (select.options.length === names.length + 1) return;
    const chosen = select.value;
    select.replaceChildren(new Option(all, "-1"), ...names.map((name, at) => new Option(name, at)));
    select.value = chosen && Number(chosen) < names.length ? chosen : "-1";
  };
  const numbers = (n) => Array.from({ length: n }, (_, at) => `${at + 1}`);
  fill($("token"), "all", state.answer.map(({ piece }, at) => `${at + 1}: ${JSON.stringify(piece)}`));
  fill($("layer"), "all", numbers(state.model.layers));
  fill($("head"), "all", numbers(state.model.heads));
}
$("filters").addEventListener("change", showFetched);

/** Shows what stands in a block. */
async function showBlock(block) {
  const title = strip.describe(block);
  let text;
  try {
    text = await client.call("block", { block });
  } catch {
    return;
  }
  $("block").hidden = false;
  $("block-title").textContent = title;
  $("block-text").textContent = text;
}

// ---- Without a network

if ("serviceWorker" in navigator && isSecureContext) {
  navigator.serviceWorker.register("service-worker.js").catch(() => {
    // The page works without; only not offline.
  });
}

start();
