// Makes the page work without a network: its own files are kept when it is first opened, and given out from then on. The
// model is not kept here; the page's worker does that itself, where it can be seen and cleared.
//
// The build writes the version and the list below. Another version is another set of files, fetched whole before it is
// used and given out whole from then on, so old and new never meet.

const VERSION = "@VERSION@";
const FILES = ["@FILES@"];
const CACHE = `landmark-page-${VERSION}`;

// A page cannot give its policy to its worker; whoever serves the worker's file can.
const POLICY = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'; style-src 'self'; img-src 'self' data:; worker-src 'self'; base-uri 'none'; form-action 'none'";

/** The same answer, with the policy. */
function guarded(response) {
  const headers = new Headers(response.headers);
  headers.set("Content-Security-Policy", POLICY);
  headers.set("X-Content-Type-Options", "nosniff");
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}

self.addEventListener("install", (event) => {
  event.waitUntil((async () => {
    const cache = await caches.open(CACHE);
    // Past the browser's own cache, which may still hold files of another version.
    await cache.addAll(FILES.map((path) => new Request(path, { cache: "reload" })));
  })());
});

self.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    for (const name of await caches.keys()) {
      if (name.startsWith("landmark-page-") && name !== CACHE) await caches.delete(name);
    }
    await self.clients.claim();
  })());
});

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || url.origin !== self.location.origin) return;
  event.respondWith((async () => {
    const cache = await caches.open(CACHE);
    const kept = await cache.match(event.request, { ignoreSearch: event.request.mode === "navigate" });
    return kept ? guarded(kept) : fetch(event.request);
  })());
});
