// The model's thread. The page asks, this answers; nothing here touches the page, and the page never waits for the model.
//
// A request is {id, call, args}; its answer {id, result} or {id, error}. In between, events {event, ...} tell how far it is.
// {cancel: true} stops whatever is under way at its next chunk or token: between two of them the worker looks at its mail.

import init, { Reader } from "./landmark_web.js";
import { loadModel } from "./store.js";

let reader;
let cancelled = false;

/** Lets messages in that came meanwhile. Timers would do the same, but browsers make those wait. */
const mail = new MessageChannel();
const breathe = () =>
  new Promise((resolve) => {
    mail.port1.onmessage = resolve;
    mail.port2.postMessage(0);
  });

/** Memory of the module, and what it holds on the GPU, in bytes. */
let memory;
const held = () => ({ wasm: memory.buffer.byteLength, gpu: reader?.held() ?? 0 });

/** What the browser calls the adapter that a module gets. */
async function adapterName() {
  const info = (await navigator.gpu.requestAdapter({ powerPreference: "high-performance" }))?.info;
  return info?.description || [info?.vendor, info?.architecture].filter(Boolean).join(" ");
}

/** How long a call may keep the worker from its mail, in milliseconds. */
const SLICE = 100;

const calls = {
  async load() {
    memory = (await init()).memory;
    const response = await fetch("manifest.json");
    if (!response.ok) throw new Error(`manifest.json could not be fetched: the server answered ${response.status}`);
    const { files, state } = await loadModel(await response.json(), (done, total, network) =>
      postMessage({ event: "load", done, total, network }));
    reader = new Reader(files["config.json"], files["tokenizer.json"], files["model.safetensors"]);
    // For looking inside from the browser's console.
    globalThis.landmarkReader = reader;
    return { model: JSON.parse(reader.model()), state };
  },

  async open({ gpu }) {
    if (gpu && !navigator.gpu) {
      const error = new Error("This browser has no WebGPU, or offers it to securely served pages only.");
      error.name = "LandmarkDeviceError";
      throw error;
    }
    const device = JSON.parse(await reader.open(gpu));
    // The browser tells its own scripts more of an adapter than it tells a module.
    if (gpu) device.name = (await adapterName()) || device.name;
    return device;
  },

  /** Makes or takes the text. */
  async prepare({ filler, own, hide, length, depth, seed }) {
    const text = hide ? reader.hide(filler, own, length, depth, seed) : reader.take(own, length);
    return JSON.parse(text);
  },

  /** Reads the text. As many chunks at a time as take about a slice. */
  async read({ total }) {
    const shape = JSON.parse(reader.begin());
    const began = performance.now();
    let tokens = 0;
    let chunks = 1;
    while (!reader.isRead() && !cancelled) {
      const before = performance.now();
      tokens = await reader.read(chunks);
      const now = performance.now();
      if (now - before < SLICE / 2) chunks = Math.min(chunks * 2, 64);
      if (now - before > SLICE * 2) chunks = Math.max(chunks >> 1, 1);
      postMessage({ event: "read", tokens, total, seconds: (now - began) / 1000, held: held() });
      await breathe();
    }
    const seconds = (performance.now() - began) / 1000;
    return { ...shape, tokens, seconds, cancelled, held: held() };
  },

  /** Asks, and streams the answer with what was fetched for each token. */
  async ask({ question, limit }) {
    const began = performance.now();
    await reader.ask(question);
    const first = performance.now();
    let answer = "";
    let tokens = 0;
    while (tokens < limit && !cancelled) {
      const next = await reader.next();
      if (next === undefined) break;
      const piece = next.slice(answer.length);
      answer = next;
      tokens += 1;
      const lookups = await reader.lookups();
      postMessage({ event: "answer", answer, piece, lookups }, [lookups.buffer]);
      await breathe();
    }
    const now = performance.now();
    return { answer, tokens, toFirst: (first - began) / 1000, seconds: (now - first) / 1000, cancelled, held: held() };
  },

  /** The same without a memory. */
  async askAlone({ question, limit }) {
    const seen = await reader.askAlone(question);
    let answer = "";
    let tokens = 0;
    while (tokens < limit && !cancelled) {
      const next = await reader.nextAlone();
      if (next === undefined) break;
      answer = next;
      tokens += 1;
      postMessage({ event: "alone", answer });
      await breathe();
    }
    return { answer, tokens, seen, cancelled, held: held() };
  },

  async block({ block }) {
    return reader.blockText(block);
  },
};

let last = Promise.resolve();

self.onmessage = ({ data }) => {
  if (data.cancel) {
    cancelled = true;
    return;
  }
  // One call at a time, in the order in which they came.
  last = last.then(async () => {
    cancelled = false;
    try {
      postMessage({ id: data.id, result: await calls[data.call](data.args ?? {}) });
    } catch (error) {
      // A module that stopped in the middle of something is of no more use; the page starts another worker.
      const name = error instanceof WebAssembly.RuntimeError ? "LandmarkCrash" : error?.name ?? "Error";
      postMessage({ id: data.id, error: { name, message: String(error?.message ?? error) } });
    }
  });
};
