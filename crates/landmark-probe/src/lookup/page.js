"use strict";
// Shades the blocks by what the chosen token, layer and head fetched. Text is only ever set as text, never as markup.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const [layer, head, strip, list, status] = ["layer", "head", "strip", "top", "status"].map(byId);
  const PARTS = 10000; // a weight of one
  const LISTED = 30;
  let shares = new Float64Array(data.blocks);
  let shaded = []; // blocks with a share, in the order of the text
  let current = -1;

  const number = (value) => (value === "all" ? null : Number(value));

  // Mean share of attention of each block over the chosen tokens, layers and heads.
  function sum(token, layer, head) {
    const sums = new Float64Array(data.blocks);
    const tokens = token === null ? data.fetched : [data.fetched[token]];
    for (const fetched of tokens) {
      for (let i = 0; i < fetched.length; i += 3) {
        const at = fetched[i];
        if (layer !== null && Math.floor(at / data.heads) !== layer) continue;
        if (head !== null && at % data.heads !== head) continue;
        sums[fetched[i + 1]] += fetched[i + 2];
      }
    }
    const heads = tokens.length * (layer === null ? data.layers : 1) * (head === null ? data.heads : 1);
    return sums.map((sum) => sum / PARTS / Math.max(heads, 1));
  }

  const percent = (share) => (share * 100).toFixed(share < 0.001 ? 3 : 1) + " %";

  function update() {
    const token = number(document.querySelector("input[name=token]:checked").value);
    for (const block of shaded) {
      const element = byId("b" + block);
      element.classList.remove("on");
      element.removeAttribute("data-share");
    }
    shares = sum(token, number(layer.value), number(head.value));
    shaded = [];
    shares.forEach((share, block) => share > 0 && shaded.push(block));
    const most = Math.max(...shaded.map((block) => shares[block]), 1e-12);
    for (const block of shaded) {
      const element = byId("b" + block);
      element.classList.add("on");
      element.style.setProperty("--share", String(Math.max(shares[block] / most, 0.08)));
      element.setAttribute("data-share", percent(shares[block]));
    }
    const top = [...shaded].sort((a, b) => shares[b] - shares[a] || a - b).slice(0, LISTED);
    list.querySelector("ol").replaceChildren(...top.map(entry));
    const total = shaded.reduce((sum, block) => sum + shares[block], 0);
    status.textContent = shaded.length === 0
      ? "Nothing was fetched."
      : `${shaded.length} of ${data.blocks} blocks fetched; they got ${percent(total)} of the attention, block ${top[0]} most of it with ${percent(shares[top[0]])}.`;
    draw();
  }

  function entry(block) {
    const item = document.createElement("li");
    const link = document.createElement("a");
    link.href = "#b" + block;
    link.textContent = `block ${block}, ${percent(shares[block])}` + (data.needle.includes(block) ? " (looked for)" : "");
    link.addEventListener("click", (event) => { event.preventDefault(); show(block); });
    const excerpt = document.createElement("span");
    excerpt.className = "excerpt";
    const text = byId("b" + block).textContent.trim();
    excerpt.textContent = text.length > 120 ? text.slice(0, 119) + "…" : text;
    item.append(link, excerpt);
    return item;
  }

  function show(block) {
    current = block;
    const element = byId("b" + block);
    element.tabIndex = -1;
    element.scrollIntoView({ block: "center" });
    element.focus({ preventScroll: true });
  }

  // The next block with a share in the order of the text, beginning anew at the end.
  function step(direction) {
    if (shaded.length === 0) return;
    const after = direction > 0 ? shaded.find((block) => block > current) : shaded.findLast((block) => block < current);
    show(after ?? (direction > 0 ? shaded[0] : shaded[shaded.length - 1]));
  }

  function draw() {
    const scale = window.devicePixelRatio || 1;
    const width = (strip.width = Math.max(Math.round(strip.clientWidth * scale), 1));
    const height = (strip.height = Math.round(48 * scale));
    const colours = getComputedStyle(document.documentElement);
    const context = strip.getContext("2d");
    const each = width / Math.max(data.blocks, 1);
    const bar = (block, top, tall) => context.fillRect(Math.floor(block * each), top, Math.max(each, 1), tall);
    const most = Math.max(...shaded.map((block) => shares[block]), 1e-12);
    context.fillStyle = colours.getPropertyValue("--hot");
    for (const block of shaded) {
      const tall = Math.max((shares[block] / most) * height * 0.85, 2 * scale);
      bar(block, height - tall, tall);
    }
    context.fillStyle = colours.getPropertyValue("--needle");
    for (const block of data.needle) bar(block, 0, height * 0.12);
    document.documentElement.style.setProperty("--header", document.querySelector("header").offsetHeight + "px");
  }

  // The block under the pointer, or a neighbour of it with a share.
  strip.addEventListener("click", (event) => {
    const box = strip.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * data.blocks;
    const near = shaded.filter((block) => Math.abs(block + 0.5 - at) <= (data.blocks / box.width) * 4 + 0.5);
    near.sort((a, b) => Math.abs(a + 0.5 - at) - Math.abs(b + 0.5 - at));
    if (data.blocks > 0) show(near[0] ?? Math.min(Math.max(Math.floor(at), 0), data.blocks - 1));
  });
  for (const input of document.querySelectorAll("input[name=token]")) input.addEventListener("change", update);
  for (const control of [layer, head]) control.addEventListener("change", update);
  byId("next").addEventListener("click", () => step(1));
  byId("previous").addEventListener("click", () => step(-1));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "SELECT") return;
    if (event.key === "n") step(1);
    if (event.key === "p") step(-1);
  });
  new ResizeObserver(draw).observe(strip);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  update();
})();
