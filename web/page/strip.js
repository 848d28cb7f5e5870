// The strip: every block of the text as a small bar, in rows like writing. A drawing for the eye, and for everybody else a
// slider whose value is a block: the arrow keys move through the text, and each block says what it is.
//
// It knows nothing of models. It is given a number of blocks, how many are read, which hold the key, and for each how
// much it was attended to; it tells which one is looked at.

export class Strip {
  #slider;
  #canvas;
  #blocks = 0;
  #read = 0;
  #needle;
  #fetched = new Map();
  #current = 0;
  #onSelect;
  #queued = false;

  constructor(slider, canvas, onSelect) {
    this.#slider = slider;
    this.#canvas = canvas;
    this.#onSelect = onSelect;
    new ResizeObserver(() => this.#redraw()).observe(slider);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#redraw());
    slider.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("click", (event) => this.#click(event));
  }

  /** Another text. `needle` is the first and the last block of the key, if there is one. */
  show(blocks, needle) {
    [this.#blocks, this.#read, this.#needle, this.#current] = [blocks, 0, needle, 0];
    this.#fetched = new Map();
    this.#slider.setAttribute("aria-valuemax", Math.max(blocks - 1, 0));
    this.#describe();
    this.#redraw();
  }

  /** So many blocks are read. */
  set read(blocks) {
    this.#read = blocks;
    this.#redraw();
  }

  /** What was fetched: block to {share, by}. */
  set fetched(fetched) {
    this.#fetched = fetched;
    this.#describe();
    this.#redraw();
  }

  /** Looks at a block, and tells. */
  select(block) {
    this.#current = Math.min(Math.max(block, 0), this.#blocks - 1);
    this.#describe();
    this.#redraw();
    this.#onSelect(this.#current);
  }

  /** What a block is, in words. */
  describe(block) {
    const parts = [`Block ${(block + 1).toLocaleString("en")} of ${this.#blocks.toLocaleString("en")}`];
    const fetched = this.#fetched.get(block);
    if (this.isNeedle(block)) parts.push("holds the pass key");
    if (fetched) parts.push(`fetched, at most ${(fetched.share * 100).toFixed(1)} % of the attention`);
    return parts.join(", ");
  }

  isNeedle(block) {
    return this.#needle !== undefined && block >= this.#needle[0] && block <= this.#needle[1];
  }

  #describe() {
    this.#slider.setAttribute("aria-valuenow", this.#current);
    this.#slider.setAttribute("aria-valuetext", this.describe(this.#current));
  }

  /** Columns, and the size of a block's place, for the width that there is. */
  #grid() {
    const width = Math.max(this.#slider.clientWidth, 60);
    const cell = Math.min(Math.max(Math.floor(Math.sqrt((width * 220) / Math.max(this.#blocks, 1))), 5), 18);
    const columns = Math.max(Math.floor(width / cell), 1);
    const high = Math.round(cell * 1.6);
    return { width, cell, high, columns, rows: Math.ceil(this.#blocks / columns) };
  }

  #redraw() {
    if (this.#queued) return;
    this.#queued = true;
    requestAnimationFrame(() => {
      this.#queued = false;
      this.#draw();
    });
  }

  #draw() {
    const { width, cell, high, columns, rows } = this.#grid();
    const ratio = devicePixelRatio || 1;
    const canvas = this.#canvas;
    const [w, h] = [Math.round(width * ratio), Math.round(Math.max(rows, 1) * high * ratio)];
    if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name);
    const [unread, read, fetched, needle, cursor] =
      ["--unread", "--read", "--fetched", "--needle", "--cursor"].map(colour);
    const draw = canvas.getContext("2d");
    draw.setTransform(ratio, 0, 0, ratio, 0, 0);
    draw.clearRect(0, 0, width, rows * high);
    const gap = cell > 7 ? 2 : 1;
    const inner = high - gap - 1;
    for (let block = 0; block < this.#blocks; block += 1) {
      const [x, y] = [(block % columns) * cell, Math.floor(block / columns) * high];
      const found = this.#fetched.get(block);
      draw.fillStyle = block < this.#read ? read : unread;
      draw.fillRect(x, y + inner * 0.5, cell - gap, inner * 0.5);
      if (found) {
        // Both height and strength of the colour; even the least share is told from none.
        const much = Math.sqrt(Math.min(found.share, 1));
        const tall = inner * (0.55 + 0.45 * much);
        draw.fillStyle = fetched;
        draw.globalAlpha = 0.35 + 0.65 * much;
        draw.fillRect(x, y + inner - tall, cell - gap, tall);
        draw.globalAlpha = 1;
      }
      if (this.isNeedle(block)) {
        draw.strokeStyle = needle;
        draw.lineWidth = Math.max(gap, 1.5);
        draw.strokeRect(x, y + 0.5, cell - gap, inner);
      }
      if (block === this.#current) {
        draw.fillStyle = cursor;
        draw.fillRect(x, y + inner + 0.5, cell - gap, Math.max(gap, 1.5));
      }
    }
  }

  #click(event) {
    const { cell, high, columns } = this.#grid();
    const box = this.#canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / cell);
    const block = Math.floor((event.clientY - box.top) / high) * columns + column;
    if (column < columns && block < this.#blocks) this.select(block);
  }

  /** The next block after the current one that was fetched, from the beginning again behind the last. */
  #nextFetched() {
    const blocks = [...this.#fetched.keys()].sort((a, b) => a - b);
    return blocks.find((block) => block > this.#current) ?? blocks[0] ?? this.#current;
  }

  #key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const row = this.#grid().columns;
    const moves = {
      ArrowRight: () => this.#current + 1,
      ArrowLeft: () => this.#current - 1,
      ArrowDown: () => this.#current + row,
      ArrowUp: () => this.#current - row,
      PageDown: () => this.#current + 10 * row,
      PageUp: () => this.#current - 10 * row,
      Home: () => 0,
      End: () => this.#blocks - 1,
      f: () => this.#nextFetched(),
      k: () => this.#needle?.[0] ?? this.#current,
    };
    const move = moves[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!move || this.#blocks === 0) return;
    event.preventDefault();
    this.select(move());
  }
}
