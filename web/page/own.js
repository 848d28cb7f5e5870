// A visitor's own text: pasted, chosen, or dropped. Of a file no more is read than the longest context can hold, so a file of
// any size costs the same; what is left away is said.

import { bytes, count } from "./words.js";

/** Bytes that are read of a file: more than 131,072 tokens of any ordinary text. */
const MOST = 4 << 20;

/** Characters that are shown of a long text: a field with megabytes in it is slow to scroll. */
const SHOWN = 20_000;

export class OwnText {
  #field;
  #state;
  /** What is taken, where the field shows only its beginning. */
  #whole;

  constructor(field, file, state) {
    [this.#field, this.#state] = [field, state];
    field.addEventListener("input", () => {
      this.#whole = undefined;
      this.#say("");
    });
    file.addEventListener("change", () => file.files[0] && this.take(file.files[0]));
    field.addEventListener("dragover", (event) => {
      event.preventDefault();
      field.classList.add("over");
    });
    field.addEventListener("dragleave", () => field.classList.remove("over"));
    field.addEventListener("drop", (event) => {
      event.preventDefault();
      field.classList.remove("over");
      const [dropped] = event.dataTransfer.files;
      const text = event.dataTransfer.getData("text/plain");
      if (dropped) this.take(dropped);
      else if (text) this.#put(text, "");
    });
  }

  get text() {
    return this.#whole ?? this.#field.value;
  }

  /** Reads a file, or as much of it as can be of use. */
  async take(file) {
    let buffer;
    try {
      buffer = await file.slice(0, MOST).arrayBuffer();
    } catch (error) {
      this.#say(`“${file.name}” could not be read: ${error.message}`);
      return;
    }
    const begins = new Uint8Array(buffer, 0, Math.min(buffer.byteLength, 4096));
    if (begins.includes(0)) {
      this.#say(`“${file.name}” is not a text: it holds bytes that no text has. Save it as plain text first.`);
      return;
    }
    const text = new TextDecoder("utf-8").decode(buffer, { stream: file.size > MOST });
    const broken = text.split("\uFFFD", 1000).length - 1;
    if (broken > text.length / 50) {
      this.#say(`“${file.name}” is not UTF-8: ${broken > 900 ? "most" : count(broken)} of its characters cannot be read. Save it as UTF-8 first.`);
      return;
    }
    const cut = file.size > MOST
      ? ` The file has ${bytes(file.size)}; the first ${bytes(MOST)} are taken, which is more than the longest context holds.`
      : "";
    this.#put(text, `“${file.name}”: ${count(text.length)} characters.${cut}`);
  }

  #put(text, said) {
    const isLong = text.length > SHOWN;
    this.#whole = isLong ? text : undefined;
    this.#field.value = isLong ? text.slice(0, SHOWN) : text;
    this.#say(isLong ? `${said} The field shows the first ${count(SHOWN)} characters; typing in it keeps only those.` : said);
  }

  #say(text) {
    this.#state.textContent = `${text} ${this.#aboutScript()}`.trim();
  }

  /** The model has learnt English. A text in another script is read all the same. */
  #aboutScript() {
    const letters = this.text.slice(0, SHOWN).match(/\p{L}/gu) ?? [];
    const latin = letters.filter((letter) => /\p{Script=Latin}/u.test(letter)).length;
    if (letters.length < 20 || latin > letters.length / 2) return "";
    return "Most of this text is in a script that the model has not learnt: it takes several tokens for each character, and answers will make little sense. A pass key hidden in it can still be looked for.";
  }
}
