// The model's files: fetched once, kept in the browser's Cache Storage, and checked by SHA-256 whenever they are used.
//
// The manifest, which the build writes, says which files there are and what they hash to. A stored file is found under a
// name that contains its hash, so a newer model never meets an older one's file; a file that no longer hashes to its name
// is thrown away and fetched again. Where there is no Cache Storage (a private window, a page that was not served
// securely) all of this works but for the keeping.

export const STORE = "landmark-model";

/** Where a file is kept. */
const keyOf = (file) => new URL(`${file.path}?sha256=${file.sha256}`, self.location.href).href;

/** The store, or nothing where the browser has none or refuses. */
async function open() {
  try {
    return await caches.open(STORE);
  } catch {
    return undefined;
  }
}

/** SHA-256 in hexadecimal, or nothing where the browser does not compute it. */
async function sha256(bytes) {
  if (!self.crypto?.subtle) return undefined;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Fetches a file, telling `progress` how many bytes of it came. */
async function download(file, progress) {
  let response;
  try {
    response = await fetch(file.path, { cache: "no-cache" });
  } catch (error) {
    throw modelError(`${file.path} could not be fetched (${error.message}); check the connection and load the page again`);
  }
  if (!response.ok) throw modelError(`${file.path} could not be fetched: the server answered ${response.status}`);
  const bytes = new Uint8Array(file.bytes);
  let at = 0;
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (at + value.length > bytes.length) throw modelError(`${file.path} is longer than the manifest says`);
    bytes.set(value, at);
    at += value.length;
    progress(at);
  }
  if (at !== bytes.length) throw modelError(`${file.path} ended after ${at} of ${bytes.length} bytes; load the page again`);
  const found = await sha256(bytes);
  if (found !== undefined && found !== file.sha256) {
    throw modelError(`${file.path} is not the file that belongs to this page (its SHA-256 differs); load the page again`);
  }
  return { bytes, checked: found !== undefined };
}

function modelError(message) {
  const error = new Error(message);
  error.name = "LandmarkModelError";
  return error;
}

/** A stored file that is whole, or nothing. One that is not is removed; `damaged` is told. */
async function stored(store, file, damaged) {
  const response = await store?.match(keyOf(file)).catch(() => undefined);
  if (!response) return undefined;
  const bytes = new Uint8Array(await response.arrayBuffer());
  const found = await sha256(bytes);
  if (bytes.length === file.bytes && (found === undefined || found === file.sha256)) return bytes;
  damaged(file);
  await store.delete(keyOf(file));
  return undefined;
}

/**
 * The model's files by name, from the store or the network. `progress` is told bytes done, bytes in all, and whether they
 * come from the network.
 */
export async function loadModel(manifest, progress) {
  const store = await open();
  const total = manifest.model.reduce((sum, file) => sum + file.bytes, 0);
  const state = { bytes: total, fromStore: 0, kept: store !== undefined, checked: true, damaged: [] };
  const files = {};
  let done = 0;
  for (const file of manifest.model) {
    let bytes = await stored(store, file, (broken) => state.damaged.push(broken.path));
    if (bytes) {
      state.fromStore += 1;
    } else {
      const fetched = await download(file, (at) => progress(done + at, total, true));
      bytes = fetched.bytes;
      state.checked &&= fetched.checked;
      try {
        await store?.put(keyOf(file), new Response(bytes, { headers: { "Content-Type": "application/octet-stream" } }));
      } catch {
        state.kept = false; // The browser gives no more room. The model works all the same.
      }
    }
    done += file.bytes;
    progress(done, total, false);
    files[file.path.split("/").pop()] = bytes;
  }
  state.isStored = state.fromStore === manifest.model.length;
  await forgetOthers(store, manifest);
  return { files, state };
}

/** Removes files of other versions of the model. */
async function forgetOthers(store, manifest) {
  try {
    const known = new Set(manifest.model.map(keyOf));
    for (const request of (await store?.keys()) ?? []) if (!known.has(request.url)) await store.delete(request);
  } catch {
    // What is left there is only room.
  }
}

/** Removes the stored model. Says whether there was one. */
export async function clearModel() {
  return caches.delete(STORE);
}
