// The page: which image is shown, what keys and clicks do to its label, undo and redo.

import { classKeys, meaning } from "./keys.js";
import { applied, inverse, pending, progressOf } from "./label.js";
import { Panel } from "./panel.js";
import { Pictures } from "./pictures.js";
import { Server } from "./server.js";
import { View } from "./view.js";

const PULSE = 2000; // milliseconds between questions whether the server is there
const IDLE = 30; // seconds without any input that count as work at most
const WAITING = 30; // inputs that may wait for the server
const HISTORY = `segshift-history${location.pathname}`, REMEMBERED = 300;

const part = (id) => document.getElementById(id);
const blank = { tags: [], points: [], complete: false, dismissed: [], suggested: null, size: [1, 1] };
const page = { classes: [], keys: [], images: [], done: [], at: 0, shown: null, file: "", current: null, chosen: null, hover: null, fromTop: false };
const time = { visit: "", seconds: 0, last: 0 };
const history = { undo: [], redo: [] };
let inputs = Promise.resolve(), waiting = 0, warned = null;

const colourOf = (name) => page.classes.find((c) => c.name === name)?.colour ?? "#888";
const image = () => page.images[page.at];
const equal = (a, b) => Boolean(a && b) && a.x === b.x && a.y === b.y && a.name === b.name;
// The label as it will be when everything that waits is saved.
const label = () => (page.shown ? applied(server.labels.get(page.shown) ?? blank, server.waiting(page.shown)) : blank);

const panel = new Panel({
  toggle: (name) => input(() => toggle(name)),
  current: (name) => input(() => makeCurrent(name)),
  go: (place) => input(() => go(place)),
});
const pictures = new Pictures();
const view = new View(part("stage"), part("picture"), part("points"), {
  place: (x, y) => { const on = page.shown; input(() => on === page.shown && place(x, y)); },
  choose: (point) => { page.chosen = equal(point, page.chosen) ? null : point; render(); },
  remove: (point) => input(() => removePoint(point)),
  hover, left: () => { hover(null); part("ghost").hidden = true; },
  zoomed: (scale) => { document.querySelector("#zoom span").textContent = `${Math.round(scale * 100)} %`; },
  moved: ghost,
});
const server = new Server({
  saved, refused, merged: () => panel.tell("Another page changed this image too: both changes are kept."),
  trouble: (about) => { panel.trouble(about, server.queue.length); if (!about) render(); },
  standing: (standing) => { panel.progress(standing); if (standing.suggest) suggestionsCame(standing); },
  changed: () => void refresh(),
});

// ---- inputs are handled one after the other: what is typed while an image loads is meant for it

function input(act) {
  const now = performance.now() / 1000;
  time.seconds += Math.min(IDLE, now - time.last);
  time.last = now;
  if (server.trouble) return;
  if (waiting >= WAITING) return panel.tell("Not taken: saving is slow just now.", "bad");
  waiting += 1;
  inputs = inputs.then(act).catch((error) => panel.tell(error.message, "bad")).finally(() => { waiting -= 1; });
}

// Do something to the label of the image that is shown.
function act(ops, kind = "do", of = page.shown, file = page.file) {
  if (!of || !ops.length) return;
  server.send({ image: of, ops, kind, file, visit: time.visit, seconds: Math.round(time.seconds * 100) / 100 });
  render();
}

function saved(entry, before, after) {
  const place = page.images.indexOf(entry.image);
  if (place >= 0) page.done[place] = progressOf(after);
  const ops = inverse(before, entry.ops);
  if (ops.length) {
    const to = entry.kind === "undo" ? history.redo : history.undo;
    to.push({ image: entry.image, ops, file: entry.file });
    to.splice(0, to.length - REMEMBERED);
    if (entry.kind === "do") history.redo = [];
    try {
      sessionStorage.setItem(HISTORY, JSON.stringify(history));
    } catch {
      // Full: undo works until the page is reloaded.
    }
  }
  panel.strip(page.done, page.at);
  render();
}

function refused(entry, text) {
  panel.tell(`Not done: ${text}`, "bad");
  void look(entry.image);
}

// Ask for the label of an image; where its file is not the one that is shown, or it cannot be labelled any more, show that.
async function look(name) {
  const about = await server.label(name).catch(() => null);
  if (name === page.shown && about?.file !== page.file) input(() => name === page.shown && go(page.at));
  render();
}

// ---- what can be done

function toggle(name) {
  if (!ready()) return;
  const now = label(), key = page.keys[page.classes.findIndex((c) => c.name === name)];
  if (pending(now).includes(name)) return act([{ kind: "suggestion", name, dismissed: true }]);
  const present = now.tags.includes(name), points = now.points.filter((p) => p[2] === name).length;
  if (present && points && warned !== `${image()} ${name}`) {
    // Clicks took time: they do not go by one slip of a finger.
    warned = `${image()} ${name}`;
    return panel.tell(`${name} has ${points} point${points > 1 ? "s" : ""}. ${key ? `Press ${key.toUpperCase()}` : "Do it"} again to take it and its points away.`);
  }
  warned = null;
  if (!present) page.current = name;
  act([{ kind: "tag", name, present: !present }]);
}

function makeCurrent(name) {
  page.current = name;
  page.chosen = null;
  render();
}

function place(x, y) {
  if (!ready()) return;
  const taken = label().points.find((p) => Math.floor(p[0] + 0.5) === x && Math.floor(p[1] + 0.5) === y);
  if (page.current === null) panel.tell("Choose a class first: press its key, or click on it in the list.");
  else if (taken) panel.tell(`There is a point of ${taken[2]} at this pixel already: zoom in, or delete it first.`);
  else {
    page.chosen = null;
    act([{ kind: "point", name: page.current, x, y, present: true }]);
  }
}

function removePoint(point) {
  if (!ready()) return;
  if (!point) return panel.tell("Point at a point with the mouse, or click on it, then delete it.");
  page.chosen = page.hover = null;
  act([{ kind: "point", name: point.name, x: point.x, y: point.y, present: false }]);
}

function complete(wanted) {
  const confirmed = wanted ? pending(label()) : [];
  act([...confirmed.map((name) => ({ kind: "tag", name, present: true })), { kind: "complete", value: wanted }]);
}

async function done() {
  if (!ready()) return;
  const now = label();
  if (!now.tags.length && !pending(now).length && !now.complete) {
    return panel.tell("No class is ticked. Shift and Enter say that none of them is in the image.");
  }
  if (!now.complete) complete(true);
  await step(1);
}

async function nothing() {
  if (!ready()) return;
  const now = label();
  if (now.tags.length) return panel.tell("Some classes are ticked: take their ticks away first.");
  const away = pending(now).map((name) => ({ kind: "suggestion", name, dismissed: true }));
  if (!now.complete) act([...away, { kind: "complete", value: true }]);
  await step(1);
}

async function takeBack(kind) {
  await server.pump();
  const entry = history[kind].pop();
  if (!entry) return panel.tell(`Nothing to ${kind}.`);
  const place = page.images.indexOf(entry.image);
  if (place < 0) return takeBack(kind);
  if (entry.image !== page.shown) {
    await go(place);
    panel.tell(`${kind === "undo" ? "Undone" : "Done again"} on this image.`);
  }
  act(entry.ops, kind, entry.image, entry.file);
}

const commands = {
  done, nothing, undo: () => takeBack("undo"), redo: () => takeBack("redo"), next: () => step(1), previous: () => step(-1), unlabelled,
  delete: () => removePoint(page.chosen ?? page.hover), complete: () => ready() && complete(!label().complete),
  fit: () => view.fit(), in: () => view.step(true), out: () => view.step(false), lighter,
};

function lighter() {
  const on = part("stage").classList.toggle("lighter");
  document.querySelector("[data-do=lighter]").setAttribute("aria-pressed", String(on));
}

// Whether the image that is wanted is there to be labelled.
function ready() {
  if (page.shown) return true;
  panel.tell("This image cannot be labelled.");
  return false;
}

// ---- going from image to image

async function step(by) {
  if (page.fromTop && by > 0) return unlabelled();
  const to = page.at + by;
  if (to < 0 || to >= page.images.length) {
    await server.pump();
    const left = page.done.filter((state) => !state).length;
    return panel.tell(by < 0 ? "This is the first image." : left ? `This is the last image. N goes to one of the ${left} without a label.` : "This is the last image, and all are labelled.");
  }
  await go(to);
}

async function unlabelled() {
  await server.pump();
  const from = page.fromTop ? 0 : page.at + 1, count = page.images.length;
  page.fromTop = false;
  for (let i = 0; i < count; i += 1) {
    const place = (from + i) % count;
    if (!page.done[place] && (place !== page.at || !page.shown)) return go(place);
  }
  panel.tell(page.done.every(Boolean) ? "All images are labelled." : "This is the only image without a label.");
}

async function go(to) {
  page.at = Math.max(0, Math.min(page.images.length - 1, to));
  page.chosen = page.hover = warned = null;
  const name = image();
  panel.place(page.at, page.images);
  panel.strip(page.done, page.at);
  window.history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  part("stage").classList.add("loading");
  try {
    const [about] = await Promise.all([server.label(name), pictures.get(name)]);
    const picture = await pictures.current(name, about.file);
    Object.assign(page, { shown: name, file: about.file });
    part("problem").hidden = true;
    view.show(picture.url, about.size);
    await part("picture").decode();
  } catch (error) {
    page.shown = null;
    view.clear();
    const told = [`${name} cannot be shown, so it cannot be labelled.`, error.message, error.content?.remedy];
    part("problem").textContent = told.filter(Boolean).join("\n");
    part("problem").hidden = false;
  }
  part("stage").classList.remove("loading");
  part("stage").dataset.image = name;
  Object.assign(time, { visit: crypto.randomUUID(), seconds: 0, last: performance.now() / 1000 });
  render();
  pictures.ahead([1, -1, 2].map((by) => page.images[page.at + by]).filter(Boolean));
}

// ---- showing

function marks() {
  const inView = label(), sure = page.shown ? server.labels.get(page.shown)?.points ?? [] : [];
  view.mark(inView.points.map(([x, y, name]) => {
    const point = { x, y, name };
    const waits = !sure.some((p) => p[0] === x && p[1] === y && p[2] === name);
    return { ...point, colour: colourOf(name), chosen: equal(point, page.chosen) || equal(point, page.hover), waiting: waits };
  }));
}

function render() {
  panel.show(label(), page.current);
  panel.saved(server.queue.length);
  marks();
  part("work").classList.toggle("choosing", Boolean(page.chosen));
  const tip = part("ghost");
  tip.querySelector("i").style.background = colourOf(page.current);
  tip.querySelector("span").textContent = page.current ?? "choose a class";
}

function hover(point) {
  if (equal(point, page.hover) || (!point && !page.hover)) return;
  page.hover = point;
  marks();
}

// The current class follows the mouse.
function ghost(event) {
  const tip = part("ghost"), box = part("stage").getBoundingClientRect();
  tip.hidden = event.pointerType !== "mouse" || !page.shown || Boolean(page.hover) || !view.pixel(event.clientX, event.clientY);
  tip.style.transform = `translate(${event.clientX - box.left + 14}px, ${event.clientY - box.top + 16}px)`;
}

// ---- the server's news

// Another page or program has changed something.
async function refresh() {
  const session = await server.session();
  if (session.images.length !== page.images.length || session.images.some((name, i) => name !== page.images[i])) {
    page.fromTop = session.ranked && !page.ranked;
    page.ranked = session.ranked;
    page.images = session.images;
    page.at = Math.max(0, page.images.indexOf(page.shown));
    panel.place(page.at, page.images);
    if (page.fromTop) panel.tell("The images are in a new order: those that would help the model most come first. Next goes to the first.");
  }
  page.done = [...session.done].map(Number);
  panel.strip(page.done, page.at);
  if (page.shown && !server.queue.length) await look(page.shown);
  render();
}

function suggestionsCame({ suggest, total }) {
  const finished = suggest.computed >= total;
  if (page.shown && server.labels.get(page.shown)?.suggested === null && suggest.computed !== page.computed) {
    void server.label(page.shown).then(render, () => undefined);
  }
  page.computed = suggest.computed;
  if (finished && !page.ranked) void refresh();
}

// ---- keyboard and buttons

addEventListener("keydown", (event) => {
  if (part("keys").open) {
    if (event.key === "?") part("keys").close();
    return;
  }
  const focused = document.activeElement?.closest("button");
  // A button that was reached with the Tab key is pressed by these.
  if (focused?.matches(":focus-visible") && (event.key === "Enter" || event.key === " ")) return;
  const meant = meaning(event, page.keys);
  if (!meant) return;
  event.preventDefault();
  if (event.key === " " && !event.shiftKey) {
    // Held, it moves the image; let go without that, it goes on.
    view.space = true;
    return;
  }
  if (event.repeat && !["next", "previous", "in", "out"].includes(meant.command)) return;
  if (meant.index !== undefined) {
    const { name } = page.classes[meant.index];
    input(() => (meant.shift ? makeCurrent(name) : toggle(name)));
  } else if (meant.command === "help") part("keys").showModal();
  else input(commands[meant.command]);
});
addEventListener("keyup", (event) => {
  if (event.key !== " " || !view.space) return;
  const dragged = view.dragged;
  view.space = view.dragged = false;
  if (!dragged) input(commands.next);
});
addEventListener("blur", () => { view.space = view.dragged = false; });
document.addEventListener("click", (event) => {
  const name = event.target.closest("[data-do]")?.dataset.do;
  if (name) input(commands[name]);
});
// A click leaves the focus where it was, so that Space and Enter keep their meaning.
document.addEventListener("mousedown", (event) => { if (event.target.closest("button") && !event.target.closest("dialog")) event.preventDefault(); });
part("help").addEventListener("click", () => part("keys").showModal());
part("trouble").querySelector("button").addEventListener("click", () => {
  if (server.queue.length) server.drop(server.queue[0]);
  if (!server.queue.length) server.well();
});
// Reloading keeps what waits, closing the tab would not.
addEventListener("beforeunload", (event) => { if (server.queue.length) event.preventDefault(); });
addEventListener("visibilitychange", () => { if (!document.hidden) void server.pulse(); });

// The image that the link names, behind its #; -1: none of these.
function linked() {
  try {
    return page.images.indexOf(decodeURIComponent(location.hash.slice(1)));
  } catch {
    return -1;
  }
}
addEventListener("hashchange", () => { const place = linked(); if (place >= 0) input(() => go(place)); });

async function start() {
  try {
    Object.assign(history, JSON.parse(sessionStorage.getItem(HISTORY)) ?? {});
  } catch {
    // Nothing to undo.
  }
  const session = await server.session();
  Object.assign(page, { classes: session.classes, keys: classKeys(session.classes.length), images: session.images, ranked: session.ranked });
  page.done = [...session.done].map(Number);
  part("whoami").textContent = `${session.folder}${session.who ? ` · labels are signed ${session.who}` : ""}`;
  panel.fill(page.classes, page.keys);
  panel.progress(session);
  const open = page.done.indexOf(0), wanted = linked();
  await go(wanted >= 0 ? wanted : Math.max(0, open));
  await server.pump(); // what was not saved when the page was left
  setInterval(() => void server.pulse(), PULSE);
}

start().catch((error) => panel.tell(error.message, "bad"));
