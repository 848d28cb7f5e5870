// How fast the page reads and answers on WebGPU: `npm run speed -- TOKENS`. The other side of the comparison is
// `cargo run --release -p landmark-web --example native -- MODEL TOKENS`, on the same adapter (benches/wgpu.md).

import { answered, choose, launch, open, ready, serve } from "./harness.mjs";

const length = Number(process.argv[2] ?? 1024);
const server = await serve();
const browser = await launch();
try {
  const { page } = await open(browser, server.url, { path: "?device=gpu" });
  page.setDefaultTimeout(1_800_000);
  await ready(page);
  console.log(await page.textContent("#device-state"));
  // The second time every shader has been compiled.
  for (let run = 0; run < 2; run++) {
    await choose(page, { source: "prose", length, depth: 50 });
    await answered(page);
    console.log(`reading: ${await page.textContent("#n-reading")}; answering: ${await page.textContent("#n-answering")}`);
  }
} finally {
  await browser.close();
  await server.close();
}
