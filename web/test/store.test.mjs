// What is kept in the browser: the model, checked; the page, for when there is no network. And a browser without WebGPU.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { answered, choose, launch, open, ready, serve } from "./harness.mjs";

const text = (page, id) => page.textContent(`#${id}`);
const WEIGHTS = "/model/model.safetensors";

describe("the page without WebGPU", { timeout: 600_000 }, () => {
  let server, browser, context, page, errors;

  before(async () => {
    server = await serve();
    browser = await launch({ webgpu: false });
    ({ context, page, errors } = await open(browser, server.url));
    await ready(page);
  });
  after(async () => {
    await browser?.close();
    await server?.close();
  });

  test("says so, and answers on the CPU", async () => {
    assert.equal(await page.getAttribute("#device-state", "data-kind"), "cpu");
    assert.match(await text(page, "device-state"), /WebGPU/);
    await choose(page, { source: "released", length: 4096, depth: 20 });
    await answered(page);
    console.log(`CPU: reading: ${await text(page, "n-reading")}; answering: ${await text(page, "n-answering")}; `
      + `memory: ${await text(page, "n-memory")}; first answer: ${await text(page, "n-first")}`);
    assert.match(await text(page, "with-verdict"), /^Right/);
  });

  test("takes the stored model after a reload, and fetches it once only", async () => {
    await page.reload();
    await ready(page);
    assert.equal(await page.getAttribute("#model-state", "data-source"), "stored");
    assert.equal(server.asked.filter((path) => path === WEIGHTS).length, 1);
  });

  test("replaces a stored model that was damaged", async () => {
    await page.evaluate(async () => {
      const store = await caches.open("landmark-model");
      const request = (await store.keys()).find(({ url }) => url.includes("model.safetensors"));
      const bytes = new Uint8Array(await (await store.match(request)).arrayBuffer());
      bytes[bytes.length >> 1] ^= 1;
      await store.put(request, new Response(bytes));
    });
    await page.reload();
    await ready(page);
    assert.match(await text(page, "model-state"), /model\.safetensors was damaged and has been replaced/);
    assert.equal(server.asked.filter((path) => path === WEIGHTS).length, 2);
  });

  test("works after a reload without a network", async () => {
    await page.evaluate(() => navigator.serviceWorker.ready);
    await server.close();
    await page.reload();
    await ready(page);
    assert.equal(await page.getAttribute("#model-state", "data-source"), "stored");
    await choose(page, { source: "holmes", length: 1024, depth: 50 });
    await page.setChecked("#hide", true);
    await answered(page);
    assert.match(await text(page, "read-state"), /^Read/);
  });

  test("says what is missing when the stored model is cleared and there is no network", async () => {
    await page.click("#clear");
    await page.waitForFunction(() => /was removed/.test(document.getElementById("model-state").textContent));
    assert.equal(await page.evaluate(() => caches.has("landmark-model")), false);
    const before = errors.length;
    await page.reload();
    await page.waitForSelector("#reload:not([hidden])");
    assert.match(await text(page, "problem"), /could not be fetched/);
    errors.length = before; // The browser logs what it could not fetch.
  });

  test("logs no errors", () => assert.deepEqual(errors, []));
});
