// The page in a browser, as a visitor meets it.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { answered, choose, launch, open, ready, screenshots, serve } from "./harness.mjs";

const axeSource = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const text = (page, id) => page.textContent(`#${id}`);

describe("the page", { timeout: 600_000 }, () => {
  let server, browser, context, page, errors, elsewhere;

  before(async () => {
    server = await serve();
    browser = await launch();
    ({ context, page, errors, elsewhere } = await open(browser, server.url));
    await ready(page);
  });
  after(async () => {
    await browser?.close();
    await server?.close();
  });

  test("loads the model, stores it, and takes the CPU rather than a GPU in software", async () => {
    assert.equal(await page.getAttribute("#model-state", "data-source"), "network");
    assert.match(await text(page, "model-state"), /SHA-256 checked/);
    assert.equal(await page.getAttribute("#device-state", "data-kind"), "cpu");
    assert.match(await text(page, "device-state"), /computed in software/);
    assert.match(await text(page, "switch"), /Use WebGPU/);
  });

  test("reads 4,096 tokens, finds the pass key, and shows where it looked", async () => {
    await choose(page, { source: "prose", length: 4096, depth: 40 });
    await answered(page);
    assert.match(await text(page, "read-state"), /^Read 4,0\d\d tokens in/);
    assert.match(await text(page, "n-reading"), /tokens\/s/);
    assert.match(await text(page, "n-answering"), /tokens\/s/);
    assert.match(await text(page, "n-memory"), /MB/);
    assert.match(await text(page, "blocks-state"), /blocks were fetched/);
    assert.ok((await page.locator("#fetched-rows tr").count()) > 0);
    console.log(`reading: ${await text(page, "n-reading")}; answering: ${await text(page, "n-answering")}; `
      + `memory: ${await text(page, "n-memory")}; first answer: ${await text(page, "n-first")}`);
    assert.match(await text(page, "with-verdict"), /^Right/);
    assert.match(await text(page, "without-verdict"), /^Wrong/);
    assert.equal(await page.getAttribute("#blocks-state", "data-needle"), "fetched");
  });

  test("every block can be reached by keyboard, and says what it is", async () => {
    await page.focus("#strip");
    await page.keyboard.press("End");
    const last = await page.getAttribute("#strip", "aria-valuemax");
    assert.equal(await page.getAttribute("#strip", "aria-valuenow"), last);
    await page.keyboard.press("ArrowLeft");
    assert.equal(await page.getAttribute("#strip", "aria-valuenow"), String(last - 1));
    await page.keyboard.press("k");
    assert.match(await page.getAttribute("#strip", "aria-valuetext"), /holds the pass key/);
    await page.waitForFunction(() => /pass key/.test(document.getElementById("block-title").textContent));
    const found = await text(page, "block-text");
    await page.keyboard.press("ArrowRight");
    await page.waitForFunction((old) => document.getElementById("block-text").textContent !== old, found);
    assert.match(found + (await text(page, "block-text")), /pass key is \d+/);
    await page.keyboard.press("f");
    assert.match(await page.getAttribute("#strip", "aria-valuetext"), /fetched, at most/);
    await page.click("#strip-canvas", { position: { x: 4, y: 4 } });
    assert.equal(await page.getAttribute("#strip", "aria-valuenow"), "0");
  });

  test("one token, layer and head can be looked at alone", async () => {
    const all = await page.locator("#fetched-rows tr").count();
    await page.selectOption("#layer", "0");
    await page.selectOption("#head", "1");
    await page.selectOption("#token", "0");
    const one = await page.locator("#fetched-rows tr").count();
    assert.ok(one > 0 && one < all, `${one} of ${all}`);
    assert.match(await page.textContent("#fetched-rows tr td:nth-child(3)"), /^1 of/);
    for (const id of ["layer", "head", "token"]) await page.selectOption(`#${id}`, "-1");
  });

  test("is drawn on phone and desktop, light and dark, without accessibility faults", async () => {
    for (const [name, width, height] of [["phone", 360, 740], ["desktop", 1280, 900]]) {
      for (const colorScheme of ["light", "dark"]) {
        await page.setViewportSize({ width, height });
        await page.emulateMedia({ colorScheme });
        await page.waitForTimeout(200);
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(wide <= 0, `${name}: ${wide} pixels too wide`);
        // What the drawing shows must be of the colours that the style names.
        const colours = await page.evaluate(() => {
          const canvas = document.getElementById("strip-canvas");
          const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          return new Set(new Uint32Array(pixels.buffer)).size;
        });
        assert.ok(colours > 3, `the strip shows ${colours} colours`);
        await page.screenshot({ path: join(screenshots, `${name}-${colorScheme}.png`), fullPage: true });
        await page.evaluate(axeSource);
        const { violations } = await page.evaluate(() => axe.run());
        const said = violations.map((v) => `${v.id}: ${v.help}: ${v.nodes.map((n) => n.target).join(" ")}`);
        assert.deepEqual(said, [], `${name}, ${colorScheme}`);
      }
    }
    await page.setViewportSize({ width: 1280, height: 900 });
  });

  test("another question needs no second reading", async () => {
    await page.fill("#question", "There is an important");
    await page.click("#ask-now");
    await page.waitForFunction(() => !["–", "…"].includes(document.getElementById("without").textContent)
      && !document.getElementById("ask-now").disabled);
    assert.notEqual(await text(page, "with"), "(nothing)");
    assert.doesNotMatch(await text(page, "with-verdict"), /Right|Wrong/);
    await page.fill("#question", "  ");
    await page.click("#ask-now");
    assert.match(await text(page, "form-problem"), /no question/);
  });

  test("stops when it is told to", async () => {
    await choose(page, { source: "notes", length: 32768 });
    await page.click("#start");
    await page.waitForFunction(() => /tokens read/.test(document.getElementById("read-state").textContent));
    assert.match(await text(page, "read-state"), /left$/);
    await page.click("#cancel");
    await page.waitForFunction(() => /^Cancelled after/.test(document.getElementById("read-state").textContent));
    assert.ok(await page.isEnabled("#start"));
    assert.ok(await page.isDisabled("#ask-now"));
  });

  test("an empty text, a long file and another script are told plainly", async () => {
    await page.check("input[value=own]");
    await page.click("#start");
    await page.waitForFunction(() => /There is no text yet/.test(document.getElementById("form-problem").textContent));

    await drop(page, 5e6);
    await page.waitForFunction(() => /first 4\.2 MB are taken/.test(document.getElementById("own-state").textContent));
    await drop(page, 100e6);
    await page.waitForFunction(() => /has 100 MB/.test(document.getElementById("own-state").textContent));
    await choose(page, { length: 1024, hide: true });
    await answered(page);
    assert.match(await text(page, "read-state"), /^Read (1,0|9)\d\d? tokens/);

    await page.fill("#own-text", "Быть или не быть, вот в чём вопрос. ".repeat(40));
    assert.match(await text(page, "own-state"), /script that the model has not learnt/);
    await answered(page);
    assert.match(await text(page, "read-state"), /^Read/);

    await page.evaluate(() => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(2000)], "picture.png"));
      document.getElementById("own-text").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
    });
    await page.waitForFunction(() => /is not a text/.test(document.getElementById("own-state").textContent));
  });

  test("asks nobody else for anything, and breaks no rule of its policy", () => {
    assert.deepEqual(elsewhere, []);
    assert.deepEqual(errors, []);
  });
});

describe("the page on WebGPU", { timeout: 900_000 }, () => {
  let server, browser, page, errors;

  before(async () => {
    server = await serve();
    browser = await launch();
    ({ page, errors } = await open(browser, server.url, { path: "?device=gpu" }));
    page.setDefaultTimeout(600_000);
    await ready(page);
  });
  after(async () => {
    await browser?.close();
    await server?.close();
  });

  test("reads and answers on the GPU when it is told to", async () => {
    assert.equal(await page.getAttribute("#device-state", "data-kind"), "gpu");
    assert.match(await text(page, "device-state"), /swiftshader/i);
    await choose(page, { source: "prose", length: 512, depth: 20 });
    await answered(page);
    console.log(`WebGPU: reading: ${await text(page, "n-reading")}; answering: ${await text(page, "n-answering")}; `
      + `memory: ${await text(page, "n-memory")}`);
    assert.match(await text(page, "n-memory"), /of it on the GPU/);
    assert.match(await text(page, "blocks-state"), /blocks were fetched/);
    assert.match(await text(page, "with-verdict"), /^Right/);
    assert.equal(await page.getAttribute("#blocks-state", "data-needle"), "fetched");
  });

  test("goes on with the CPU when the device is lost", async () => {
    await page.workers()[0].evaluate(() => landmarkReader.lose());
    await page.click("#ask-now");
    await page.waitForSelector("#go-on:not([hidden])");
    assert.match(await text(page, "problem"), /The GPU failed: .*lost/);
    await page.click("#go-on");
    await page.waitForFunction(() => !["–", "…"].includes(document.getElementById("without").textContent)
      && !document.getElementById("start").disabled);
    assert.equal(await page.getAttribute("#device-state", "data-kind"), "cpu");
    assert.match(await text(page, "blocks-state"), /blocks were fetched/);
    assert.match(await text(page, "with-verdict"), /^Right/);
  });

  test("logs no errors", () => assert.deepEqual(errors, []));
});

/** Drops a file of so many bytes on the field. */
async function drop(page, size) {
  await page.evaluate((size) => {
    const line = "It was a bright cold day in April, and the clocks were striking thirteen.\n";
    const piece = new Blob([line.repeat(1000)]);
    const parts = Array.from({ length: Math.ceil(size / piece.size) }, () => piece);
    const file = new File([new Blob(parts).slice(0, size)], "long.txt", { type: "text/plain" });
    const data = new DataTransfer();
    data.items.add(file);
    document.getElementById("own-text").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
  }, size);
}
