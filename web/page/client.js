// The page's end of the wire to the worker: calls as promises, events to a listener. A worker that broke can be replaced.

export class Client {
  #worker;
  #next = 0;
  #waiting = new Map();
  #listen;

  /** `listen` gets the worker's events. */
  constructor(listen) {
    this.#listen = listen;
    this.restart();
  }

  /** Another worker, which knows nothing yet. What was asked of the old one fails. */
  restart() {
    this.#worker?.terminate();
    this.#fail(named("LandmarkCrash", "the model's thread was started anew"));
    this.#worker = new Worker("worker.js", { type: "module" });
    this.#worker.onmessage = ({ data }) => this.#receive(data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(named("LandmarkCrash", event.message || "the model's thread could not be started"));
    };
  }

  call(name, args) {
    this.#next += 1;
    const id = this.#next;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, call: name, args });
    });
  }

  /** Stops what is under way, soon. */
  cancel() {
    this.#worker.postMessage({ cancel: true });
  }

  #receive(data) {
    if (data.event) {
      this.#listen(data);
      return;
    }
    const waiting = this.#waiting.get(data.id);
    this.#waiting.delete(data.id);
    if (data.error) waiting?.reject(named(data.error.name, data.error.message));
    else waiting?.resolve(data.result);
  }

  #fail(error) {
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const { reject } of waiting) reject(error);
  }
}

function named(name, message) {
  const error = new Error(message);
  error.name = name;
  return error;
}
