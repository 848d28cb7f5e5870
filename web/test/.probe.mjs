import { answered, choose, launch, open, ready, serve } from "/work/wt-web/web/test/harness.mjs";
const gpu = process.argv[2] !== "cpu"; const len = Number(process.argv[3] ?? 4096);
const server = await serve(); const browser = await launch({ webgpu: gpu });
const t0 = Date.now();
const { page, errors } = await open(browser, server.url);
await ready(page); console.log("ready", Date.now()-t0, await page.textContent("#device-state"));
await choose(page, { length: len });
await page.click("#start");
let last = "";
const end = Date.now() + Number(process.argv[4] ?? 150) * 1000;
while (Date.now() < end) {
  const s = await page.evaluate(() => ["read-state","with","without","n-memory","n-reading","n-answering","problem","n-first"].map(i => document.getElementById(i).textContent).join(" | "));
  if (s !== last) { console.log(Date.now()-t0, s); last = s; }
  if (await page.evaluate(() => !document.getElementById("start").disabled)) break;
  await new Promise(r => setTimeout(r, 500));
}
console.log(errors); await browser.close(); await server.close(); process.exit(0);
