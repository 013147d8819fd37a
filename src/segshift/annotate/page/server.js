// Talks to the server: one action at a time, each kept until the server says that it is on disk.

const QUEUE = `segshift-queue${location.pathname}`; // the path is another for other labels
const PATIENCE = 8000; // milliseconds until a server that says nothing counts as gone
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

const kept = () => {
  try {
    return JSON.parse(sessionStorage.getItem(QUEUE)) ?? [];
  } catch {
    return [];
  }
};

class Answer extends Error {
  constructor(status, content) {
    super(content?.found ?? `the server answered ${status}`);
    this.status = status;
    this.content = content;
  }
}

async function ask(path, options = {}) {
  let response, content;
  try {
    response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE), ...options });
    content = await response.json().catch(() => null);
  } catch (error) {
    throw new Answer(0, { found: String(error) });
  }
  if (!response.ok || content === null) throw new Answer(response.status, content);
  return content;
}

export class Server {
  // on: saved(entry, before, label), refused(entry, text), merged(), trouble(about or null), changed(), standing(content)
  constructor(on) {
    this.on = on;
    this.labels = new Map(); // of images: what the server said last
    this.queue = kept(); // actions that are not known to be on disk
    this.trouble = null;
    this.stamp = null;
    this.pumping = null;
    this.acts = 0; // actions that were answered
  }

  get(path, image) {
    return ask(image === undefined ? `api/${path}` : `api/${path}?image=${encodeURIComponent(image)}`);
  }

  // Ask until there is an answer; an error that a later try cannot mend is thrown.
  async insist(path, image) {
    for (;;) {
      try {
        const content = await this.get(path, image);
        this.well();
        return content;
      } catch (error) {
        if (![0, 403, 500, 503].includes(error.status)) throw error;
        this.failed(error);
        await pause(1000);
      }
    }
  }

  async session() {
    const session = await this.insist("session");
    this.stamp = session.stamp;
    return session;
  }

  async label(image) {
    for (;;) {
      const acts = this.acts, label = await this.insist("label", image);
      // What was asked before an action must not replace what came of the action.
      if (acts !== this.acts) continue;
      this.labels.set(image, label);
      return label;
    }
  }

  // The label of an image as it will be when everything that waits is saved.
  waiting(image) {
    return this.queue.filter((entry) => entry.image === image).flatMap((entry) => entry.ops);
  }

  send(entry) {
    this.queue.push(entry);
    this.keep();
    return this.pump();
  }

  keep() {
    try {
      sessionStorage.setItem(QUEUE, JSON.stringify(this.queue));
    } catch {
      // Only a reload of the page while the server is gone would lose them.
    }
  }

  pump() {
    this.pumping ??= this.run().finally(() => { this.pumping = null; });
    return this.pumping;
  }

  async run() {
    while (this.queue.length) {
      const entry = this.queue[0];
      try {
        await this.attempt(entry);
      } catch (error) {
        if ([0, 403, 500, 503].includes(error.status)) {
          entry.tried = true;
          this.failed(error);
          await pause(1000);
          continue;
        }
        this.drop(entry);
        this.well();
        this.on.refused(entry, error.message);
      }
    }
  }

  drop(entry) {
    this.queue = this.queue.filter((other) => other !== entry);
    this.keep();
  }

  async attempt(entry) {
    const before = this.labels.get(entry.image) ?? (await this.label(entry.image));
    entry.before ??= before;
    const { image, ops, file, visit, seconds } = entry;
    const body = JSON.stringify({ image, base: before.revision, ops, file, visit, seconds });
    const headers = { "Content-Type": "application/json" };
    let reply;
    try {
      reply = await ask("api/act", { method: "POST", headers, body });
    } catch (error) {
      if (error.status !== 409) throw error;
      // Somebody else was faster. On what they made of it the same operations are tried again.
      this.well();
      this.acts += 1;
      this.labels.set(image, error.content.label);
      if (!entry.tried) {
        entry.before = undefined;
        this.on.merged();
      }
      return;
    }
    this.drop(entry);
    this.acts += 1;
    this.labels.set(image, reply.label);
    this.well();
    this.heard(reply, true);
    this.on.saved(entry, entry.before, reply.label);
  }

  // ---- is it there?

  heard(standing, mine) {
    const [boot, count] = (this.stamp ?? "-").split("-"), [nowBoot, nowCount] = standing.stamp.split("-");
    const alone = standing.stamp === this.stamp || (mine && boot === nowBoot && Number(nowCount) === Number(count) + 1);
    this.stamp = standing.stamp;
    this.on.standing(standing);
    if (!alone) this.on.changed();
  }

  async pulse() {
    if (this.pumping || this.trouble) return;
    try {
      const standing = await this.get("pulse");
      if (!this.pumping) this.heard(standing, false);
    } catch (error) {
      this.failed(error);
      const session = await this.insist("pulse");
      this.heard(session, false);
    }
  }

  failed(error) {
    this.trouble = { status: error.status, ...(error.content ?? {}) };
    this.on.trouble(this.trouble);
  }

  well() {
    if (!this.trouble) return;
    this.trouble = null;
    this.on.trouble(null);
  }
}
