
"use strict";
(() => {
  const viewer = document.getElementById("viewer");
  const panels = [...document.querySelectorAll(".panel")].map((panel) => [...panel.querySelectorAll(".tile")]);
  if (viewer && panels.length) {
    const part = (name) => document.getElementById("v-" + name);
    let row = 0, column = 0;
    const show = () => {
      const tile = panels[row][column], image = tile.querySelector("img");
      part("image").src = image.src;
      part("image").alt = image.alt;
      part("image").width = image.getAttribute("width");
      part("image").height = image.getAttribute("height");
      part("image").style.aspectRatio = image.getAttribute("width") + " / " + image.getAttribute("height");
      part("image").classList.toggle("flat", image.src.startsWith("data:image/png"));
      part("caption").textContent = tile.dataset.caption;
      part("note").textContent = tile.dataset.note;
      part("name").textContent = tile.dataset.name;
    };
    const turn = (by) => {
      column = (column + by + panels[row].length) % panels[row].length;
      show();
    };
    const other = (by) => {
      const kind = panels[row][column].dataset.kind;
      // Panels in folded parts of the page are passed over.
      do row = (row + by + panels.length) % panels.length; while (panels[row][0].closest("details:not([open])"));
      const same = panels[row].findIndex((tile) => tile.dataset.kind === kind);
      column = same < 0 ? Math.min(column, panels[row].length - 1) : same;
      show();
    };
    panels.forEach((tiles, r) => tiles.forEach((tile, c) => tile.addEventListener("click", () => {
      row = r;
      column = c;
      show();
      viewer.showModal();
    })));
    const keys = { ArrowLeft: () => turn(-1), ArrowRight: () => turn(1), ArrowUp: () => other(-1), ArrowDown: () => other(1) };
    viewer.addEventListener("keydown", (event) => {
      if (keys[event.key]) {
        event.preventDefault();
        keys[event.key]();
      }
    });
    part("prev").addEventListener("click", () => turn(-1));
    part("next").addEventListener("click", () => turn(1));
    part("close").addEventListener("click", () => viewer.close());
    part("image").addEventListener("click", () => turn(1));
    viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
    viewer.addEventListener("close", () => panels[row][column].focus());
  }
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((block) => { block.open = true; }));
})();
