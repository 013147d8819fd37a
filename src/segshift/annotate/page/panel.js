// The list of classes, the progress, the strip of all images, and messages.

import { pending } from "./label.js";

const part = (id) => document.getElementById(id);
const element = (tag, name, text = "") => {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
};
const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

export class Panel {
  // on: toggle(name), current(name), go(place)
  constructor(on) {
    this.on = on;
    this.rows = new Map();
    this.fading = 0;
    const strip = part("strip");
    strip.addEventListener("click", (event) => {
      const box = strip.getBoundingClientRect();
      this.on.go(Math.floor(((event.clientX - box.left) / box.width) * this.done.length));
    });
    new ResizeObserver(() => this.strip()).observe(strip);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.strip());
  }

  fill(classes, keys) {
    part("classes").replaceChildren(...classes.map(({ name, colour }, i) => {
      const row = element("li", "class"), tick = element("button", "tick"), pick = element("button", "pick");
      tick.type = pick.type = "button";
      tick.append(element("i", "box"));
      tick.addEventListener("click", () => this.on.toggle(name));
      pick.addEventListener("click", () => this.on.current(name));
      const swatch = element("i", "swatch");
      swatch.style.background = colour;
      pick.append(swatch, element("bdi", "name", name), element("span", "said"), element("kbd", "", (keys[i] ?? "").toUpperCase()));
      pick.title = `Place points of ${name}${keys[i] ? ` (Shift ${keys[i].toUpperCase()})` : ""}`;
      row.append(tick, pick);
      row.dataset.name = name;
      this.rows.set(name, row);
      return row;
    }));
  }

  // What is ticked, suggested and current.
  show(label, current) {
    const open = new Set(pending(label));
    for (const [name, row] of this.rows) {
      const present = label.tags.includes(name), points = label.points.filter((p) => p[2] === name).length;
      row.classList.toggle("present", present);
      row.classList.toggle("suggested", open.has(name));
      if (name === current && !row.classList.contains("current")) row.scrollIntoView({ block: "nearest" });
      row.classList.toggle("current", name === current);
      const tick = row.firstChild, said = row.querySelector(".said");
      tick.setAttribute("aria-pressed", String(present));
      tick.setAttribute("aria-label", `${name} is in the image${open.has(name) ? " (suggested, not saved)" : ""}`);
      row.lastChild.setAttribute("aria-pressed", String(name === current));
      said.textContent = open.has(name) ? "suggested" : points ? count(points, "point") : "";
    }
    const pill = part("pill"), state = label.complete ? "complete" : label.tags.length || label.points.length ? "begun" : "new";
    const words = { complete: label.tags.length ? "complete" : "nothing present", begun: "begun", new: "not labelled" };
    pill.textContent = words[state];
    pill.className = `pill ${state}`;
    this.notes(label, open.size);
  }

  notes(label, open) {
    const notes = [];
    if (open) {
      const note = element("p", "note hint");
      note.append(element("b", "", `${count(open, "class").replace("classs", "classes")} suggested by the model, not saved.`),
        " Take wrong ticks away; \"Complete\" confirms the rest.");
      notes.push(note);
    }
    if (label.turned) notes.push(element("p", "note", "This file asks viewers to turn it (EXIF). segshift reads and shows it as it is stored."));
    if (label.note) notes.push(element("p", "note hint", label.note));
    part("notes").replaceChildren(...notes);
  }

  progress(standing) {
    const { labelled, total, median, suggest } = standing;
    part("labelled").textContent = `${labelled} / ${total} labelled`;
    part("median").replaceChildren(...(median === null ? [] : [`median ${median < 9.95 ? median.toFixed(1) : Math.round(median)} s`, element("span", "words", " an image")]));
    part("suggest").textContent = !suggest ? "" : suggest.failure ? suggest.failure
      : suggest.computed < total ? `suggestions ${suggest.computed} / ${total}` : "";
    part("suggest").classList.toggle("bad", Boolean(suggest?.failure));
  }

  place(index, images) {
    part("place").textContent = `${index + 1} / ${images.length}`;
    part("name").textContent = images[index];
    part("name").title = images[index];
    document.title = `${index + 1} / ${images.length} · segshift annotate`;
  }

  saved(waiting) {
    part("saved").replaceChildren(waiting ? "saving…" : element("span", "words", "saved"));
    part("saved").classList.toggle("waiting", waiting > 0);
  }

  // done: a number an image, in the order shown; at: the current one.
  strip(done = this.done, at = this.at) {
    [this.done, this.at] = [done, at];
    const strip = part("strip"), pen = strip.getContext("2d"), ratio = devicePixelRatio || 1;
    if (!done?.length) return;
    const width = (strip.width = Math.max(1, Math.round(strip.clientWidth * ratio)));
    const height = (strip.height = Math.round(strip.clientHeight * ratio));
    const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
    const colours = [colour("--track"), colour("--begun"), colour("--accent")];
    const cell = width / done.length, gap = cell > 4 * ratio ? ratio : 0;
    done.forEach((state, i) => {
      pen.fillStyle = colours[state];
      const from = Math.round(i * cell);
      pen.fillRect(from, 0, Math.max(1, Math.round((i + 1) * cell) - from - gap), height);
    });
    pen.fillStyle = colour("--ink");
    const wide = Math.max(cell, 3 * ratio);
    pen.fillRect(Math.round(Math.min(width - wide, (at + 0.5) * cell - wide / 2)), 0, Math.round(wide), height);
  }

  tell(text, kind = "") {
    const toast = part("toast");
    toast.textContent = text;
    toast.className = `shown ${kind}`;
    clearTimeout(this.fading);
    this.fading = setTimeout(() => { toast.className = ""; }, kind === "bad" ? 9000 : 3500);
  }

  trouble(about, waiting) {
    const box = part("trouble");
    box.hidden = !about;
    part("work").inert = part("top").inert = Boolean(about);
    if (!about) return;
    const gone = about.status === 0, out = about.status === 403;
    box.querySelector("h2").textContent = gone ? "The server does not answer" : out ? "This link is no longer valid" : "Not saved";
    box.querySelector(".text").textContent = gone
      ? "Run the same command again: this page goes on by itself."
      : out ? "Open the link that the command printed last." : [about.found, about.wanted && `wanted: ${about.wanted}`, about.remedy && `to do: ${about.remedy}`].filter(Boolean).join("\n");
    box.querySelector(".kept").textContent = waiting
      ? `Everything before is saved. ${count(waiting, "action")} not saved yet ${waiting === 1 ? "is" : "are"} kept here and will be sent again.`
      : "Everything that you have done is saved.";
    box.querySelector("button").hidden = !waiting || gone;
  }
}
