// The image on the stage: fitting, zooming, moving, and where in the image a click is.

const CLOSEST = 40; // screen pixels for a pixel of the image
const STEP = 1.3;
const SLACK = { mouse: 5, pen: 8, touch: 12 }; // a press that moves less is a click
const REACH = { mouse: 9, pen: 14, touch: 20 }; // how far from a point a press still means it
const BLOCKY = 5; // from this scale on pixels are shown as squares
const MARGIN = 10;

export class View {
  // on: place(x, y, kind), choose(point), remove(point), hover(point or null), left(), zoomed(scale), moved(event)
  constructor(stage, picture, layer, on) {
    Object.assign(this, { stage, picture, layer, on });
    this.size = null;
    this.points = [];
    this.pointers = new Map();
    this.space = false; // held
    this.dragged = false; // with the space key
    stage.addEventListener("pointerdown", (e) => this.down(e));
    stage.addEventListener("pointermove", (e) => this.move(e));
    stage.addEventListener("pointerup", (e) => this.up(e));
    stage.addEventListener("pointercancel", (e) => this.pointers.delete(e.pointerId));
    stage.addEventListener("pointerleave", () => this.on.left());
    stage.addEventListener("contextmenu", (e) => e.preventDefault());
    stage.addEventListener("wheel", (e) => this.wheel(e), { passive: false });
    // The middle button would start the browser's own scrolling.
    stage.addEventListener("mousedown", (e) => { if (e.button === 1) e.preventDefault(); });
    new ResizeObserver(() => this.resized()).observe(stage);
  }

  // ---- showing

  show(url, size) {
    this.size = size;
    this.picture.src = url;
    [this.picture.width, this.picture.height] = size;
    this.pointers.clear();
    this.fit();
  }

  clear() {
    this.size = null;
    this.picture.removeAttribute("src");
    this.mark([]);
  }

  // marks: {x, y, name, colour, chosen, waiting}
  mark(marks) {
    this.points = marks;
    this.layer.replaceChildren(...marks.map((mark) => {
      const dot = document.createElement("div"), text = document.createElement("span");
      dot.className = `point${mark.chosen ? " chosen" : ""}${mark.waiting ? " waiting" : ""}`;
      dot.dataset.name = mark.name;
      dot.style.setProperty("--colour", mark.colour);
      text.textContent = mark.name;
      dot.append(text);
      return dot;
    }));
    this.draw();
  }

  draw() {
    if (!this.size) return;
    this.picture.style.transform = `translate(${this.left}px, ${this.top}px) scale(${this.scale})`;
    this.picture.classList.toggle("blocky", this.scale >= BLOCKY);
    this.points.forEach((mark, i) => {
      const [x, y] = this.toScreen(mark.x, mark.y), dot = this.layer.children[i];
      dot.style.transform = `translate(${x}px, ${y}px)`;
      dot.classList.toggle("low", y < 40);
    });
    this.on.zoomed(this.scale);
  }

  // ---- geometry; whole coordinates are pixel centres, so the image reaches from -0.5

  toScreen(x, y) {
    return [this.left + (x + 0.5) * this.scale, this.top + (y + 0.5) * this.scale];
  }

  // The pixel under a place on the screen, or null outside of the image.
  pixel(clientX, clientY) {
    if (!this.size) return null;
    const box = this.stage.getBoundingClientRect();
    // A mouse tells whole pixels of the screen; what it points at is their middle.
    const middle = (at) => at + (Number.isInteger(at) ? 0.5 : 0);
    const x = Math.floor((middle(clientX) - box.left - this.left) / this.scale);
    const y = Math.floor((middle(clientY) - box.top - this.top) / this.scale);
    return x >= 0 && y >= 0 && x < this.size[0] && y < this.size[1] ? [x, y] : null;
  }

  near(clientX, clientY, kind) {
    const box = this.stage.getBoundingClientRect();
    let best = null, least = REACH[kind] ?? REACH.mouse;
    for (const mark of this.points) {
      const [x, y] = this.toScreen(mark.x, mark.y);
      const far = Math.hypot(x - (clientX - box.left), y - (clientY - box.top));
      if (far <= least) [best, least] = [mark, far];
    }
    return best;
  }

  fitting() {
    const { clientWidth, clientHeight } = this.stage;
    const room = (all) => Math.max(20, all - 2 * Math.min(MARGIN, all / 20));
    return Math.min(room(clientWidth) / this.size[0], room(clientHeight) / this.size[1], CLOSEST);
  }

  fit() {
    if (!this.size) return;
    this.scale = this.least = this.fitting();
    this.centre();
    this.draw();
  }

  centre() {
    const { clientWidth, clientHeight } = this.stage, [width, height] = this.size.map((side) => side * this.scale);
    // Fitted it is in the middle; zoomed, the middle of the stage stays on it, and zooming in never moves what is under the mouse.
    const fitted = this.scale <= this.least * 1.001;
    const settle = (offset, shown, all) => (fitted ? (all - shown) / 2 : Math.min(all / 2, Math.max(all / 2 - shown, offset)));
    this.left = settle(this.left, width, clientWidth);
    this.top = settle(this.top, height, clientHeight);
  }

  resized() {
    if (!this.size) return;
    const fitted = this.scale <= this.least * 1.001;
    this.least = this.fitting();
    if (fitted) this.fit();
    else {
      this.centre();
      this.draw();
    }
  }

  // Zoom by a factor; what is at a place of the screen stays there, or goes to another.
  zoom(factor, clientX, clientY, toX = clientX, toY = clientY) {
    if (!this.size) return;
    const box = this.stage.getBoundingClientRect();
    const [x, y] = clientX === undefined ? [box.width / 2, box.height / 2] : [clientX - box.left, clientY - box.top];
    const [dx, dy] = clientX === undefined ? [0, 0] : [toX - clientX, toY - clientY];
    const scale = Math.min(Math.max(this.scale * factor, this.least), Math.max(CLOSEST, this.least));
    this.left = x + dx - ((x - this.left) * scale) / this.scale;
    this.top = y + dy - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.centre();
    this.draw();
  }

  step(inwards) {
    this.zoom(inwards ? STEP : 1 / STEP);
  }

  shift(dx, dy) {
    this.left += dx;
    this.top += dy;
    this.centre();
    this.draw();
  }

  // ---- mouse, pen and fingers

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    const speed = event.ctrlKey ? 0.01 : 0.0022; // with ctrl it is a pinch on a touchpad
    this.zoom(Math.exp(-Math.max(-240, Math.min(240, event.deltaY * lines)) * speed), event.clientX, event.clientY);
  }

  down(event) {
    if (event.target.closest("button")) return;
    this.stage.setPointerCapture(event.pointerId);
    const alone = this.pointers.size === 0;
    const at = { x: event.clientX, y: event.clientY };
    const button = event.ctrlKey ? 2 : event.button; // a Mac's right click
    this.pointers.set(event.pointerId, { ...at, from: at, button, kind: event.pointerType, still: alone });
    // Two fingers are no tap, whichever is lifted first.
    if (!alone) this.pointers.forEach((pointer) => { pointer.still = false; });
  }

  move(event) {
    const pointer = this.pointers.get(event.pointerId);
    this.on.moved(event);
    if (!pointer) {
      this.on.hover(this.near(event.clientX, event.clientY, event.pointerType));
      return;
    }
    const before = this.spread();
    const [dx, dy] = [event.clientX - pointer.x, event.clientY - pointer.y];
    const far = Math.hypot(event.clientX - pointer.from.x, event.clientY - pointer.from.y);
    if (pointer.still && far <= (SLACK[pointer.kind] ?? SLACK.mouse)) return;
    pointer.still = false;
    pointer.x = event.clientX;
    pointer.y = event.clientY;
    if (this.space) this.dragged = true;
    if (this.pointers.size === 1) this.shift(dx, dy);
    else if (this.pointers.size === 2) {
      const after = this.spread();
      this.zoom(after.far / Math.max(1, before.far), before.x, before.y, after.x, after.y);
    }
  }

  // Where two fingers are, and how far apart.
  spread() {
    const [a, b] = [...this.pointers.values()];
    return b ? { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, far: Math.hypot(a.x - b.x, a.y - b.y) } : null;
  }

  up(event) {
    const pointer = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    if (!pointer?.still || this.space) return;
    const { x, y } = pointer.from, near = this.near(x, y, pointer.kind);
    if (pointer.button === 2 && near) this.on.remove(near);
    if (pointer.button !== 0) return;
    const pixel = this.pixel(x, y);
    if (near) this.on.choose(near);
    else if (pixel) this.on.place(...pixel);
  }
}
