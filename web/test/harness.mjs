// What the tests share: the page served as any static host would serve it, and a browser that opens it.
//
// The browser is the system's Chromium with WebGPU on SwiftShader, so that the page's shaders run for real where there is
// no GPU.

import { createServer } from "node:http";
import { existsSync, mkdirSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const here = dirname(fileURLToPath(import.meta.url));
export const dist = join(here, "..", "dist");
export const screenshots = process.env.LANDMARK_SCREENSHOTS ?? join(here, "..", "..", "target", "web-screenshots");
mkdirSync(screenshots, { recursive: true });

const TYPES = {
  ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".json": "application/json",
  ".wasm": "application/wasm", ".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8",
};

/** Serves the page on a port of its own, and remembers what was asked for. */
export async function serve() {
  const asked = [];
  const server = createServer(async (request, response) => {
    const path = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
    asked.push(path);
    const file = join(dist, normalize(path.endsWith("/") ? `${path}index.html` : path));
    try {
      const body = await readFile(file);
      response.writeHead(200, { "Content-Type": TYPES[extname(file)] ?? "application/octet-stream" });
      response.end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((resolve) => server.listen(0, "localhost", resolve));
  return {
    url: `http://localhost:${server.address().port}/`,
    asked,
    close: () => new Promise((resolve) => {
      server.close(resolve);
      server.closeAllConnections();
    }),
  };
}

const WEBGPU = [
  "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan",
  "--use-vulkan=swiftshader", "--disable-vulkan-surface", "--ignore-gpu-blocklist",
];

export async function launch({ webgpu = true } = {}) {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  if (!existsSync(executablePath)) throw new Error(`${executablePath} is missing: install Chromium, or name it with CHROMIUM`);
  const args = ["--no-sandbox", ...(webgpu ? WEBGPU : ["--disable-gpu", "--disable-features=WebGPU"])];
  return chromium.launch({ executablePath, args, headless: true });
}

/** A page of a profile of its own, whose errors and requests to elsewhere are kept. */
export async function open(browser, url, options = {}) {
  const { path = "", ...rest } = options;
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...rest });
  const page = await context.newPage();
  page.setDefaultTimeout(120_000);
  const errors = [];
  const elsewhere = [];
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  context.on("request", (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith("data:")) elsewhere.push(request.url());
  });
  await page.goto(url + path);
  return { context, page, errors, elsewhere };
}

/** Waits until the model is there. */
export async function ready(page) {
  await page.waitForSelector("#model-state[data-source]");
  await page.waitForSelector("#start:not([disabled])");
}

/** Chooses what is read; the rest stays as it is. */
export async function choose(page, { source, length, depth, hide }) {
  if (source) await page.check(`input[value=${source}]`);
  if (length) await page.fill("#length", String(Math.log2(length / 512)));
  if (depth !== undefined) await page.fill("#depth", String(depth));
  if (hide !== undefined) await page.setChecked("#hide", hide);
}

/** Reads and asks, until both answers are there. */
export async function answered(page) {
  await page.click("#start");
  await page.waitForFunction(() => {
    const alert = document.getElementById("problem").textContent || document.getElementById("form-problem").textContent;
    if (alert) throw new Error(alert);
    const isDone = (id) => !["–", "…"].includes(document.getElementById(id).textContent);
    return isDone("with") && isDone("without") && !document.getElementById("start").disabled;
  });
}
